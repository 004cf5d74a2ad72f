//! The addon of spindle. Each function takes a descriptor or a buffer and holds no policy; `src/native/types.ts` says
//! what it promises, and `src/native/fallback.ts` holds its twin in TypeScript.

#![cfg(unix)]

pub mod allocate;
pub mod batch;
pub mod buffer;
pub mod cached;
pub mod clone;
pub mod codec;
pub mod compare;
pub mod deflate;
pub mod device;
pub mod failure;
pub mod flags;
pub mod lock;
pub mod os;
pub mod packed;
pub mod sparse;
pub mod transfer;
#[cfg(target_os = "linux")]
pub mod uring;
pub mod workload;
pub mod zero;

// Tests run outside of Node, where the symbols that the glue needs do not exist.
#[cfg(not(test))]
mod glue;
#[cfg(test)]
mod scratch;
