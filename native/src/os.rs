//! The calls that take 64-bit offsets, under one name on every platform.

#[cfg(all(target_os = "linux", target_env = "gnu"))]
pub use libc::{
    fallocate64 as fallocate, flock64 as flock, lseek64 as lseek, off64_t as off_t,
    preadv64v2 as preadv2, pwrite64 as pwrite,
};

#[cfg(all(target_os = "linux", not(target_env = "gnu")))]
pub use libc::{fallocate, flock, lseek, off_t, preadv2, pwrite};

#[cfg(not(target_os = "linux"))]
pub use libc::{lseek, off_t, pwrite};
