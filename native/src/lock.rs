//! Open-file-description locks on single bytes.

use crate::failure::{Failure, Outcome, end_of};

const SET: &str = "fcntl F_OFD_SETLK";
const GET: &str = "fcntl F_OFD_GETLK";

/// Shared locks on all of `bytes`, or none: EAGAIN when another description holds one of them exclusively.
pub fn lock(fd: i32, bytes: &[u64]) -> Outcome<()> {
    for (index, byte) in bytes.iter().enumerate() {
        if let Err(failure) = ofd::set(fd, ofd::SHARED, *byte) {
            // Those that were taken go back, so that a failed call changes nothing.
            let _ = unlock(fd, &bytes[..index]);
            return Err(failure);
        }
    }
    Ok(())
}

/// Drops locks.
pub fn unlock(fd: i32, bytes: &[u64]) -> Outcome<()> {
    bytes
        .iter()
        .try_for_each(|byte| ofd::set(fd, ofd::NONE, *byte))
}

/// The first of `bytes` on which another open file description holds a lock.
pub fn find_locked(fd: i32, bytes: &[u64]) -> Outcome<Option<u64>> {
    for byte in bytes {
        if ofd::is_locked(fd, *byte)? {
            return Ok(Some(*byte));
        }
    }
    Ok(None)
}

#[cfg(target_os = "linux")]
mod ofd {
    use super::{Failure, GET, Outcome, SET, end_of};
    use crate::os;

    pub const SHARED: i32 = libc::F_RDLCK as _;
    pub const NONE: i32 = libc::F_UNLCK as _;

    fn request(kind: i32, byte: u64, call: &'static str) -> Outcome<os::flock> {
        end_of(byte, 1, call)?;
        // SAFETY: all-zero bytes are a valid flock; OFD commands demand that l_pid is 0.
        let mut lock: os::flock = unsafe { std::mem::zeroed() };
        lock.l_type = kind as _;
        lock.l_whence = libc::SEEK_SET as _;
        lock.l_start = byte as _;
        lock.l_len = 1;
        Ok(lock)
    }

    pub fn set(fd: i32, kind: i32, byte: u64) -> Outcome<()> {
        let lock = request(kind, byte, SET)?;
        // SAFETY: the command reads a flock.
        match unsafe { libc::fcntl(fd, libc::F_OFD_SETLK, &raw const lock) } {
            0 => Ok(()),
            _ => Err(Failure::last(SET)),
        }
    }

    pub fn is_locked(fd: i32, byte: u64) -> Outcome<bool> {
        let mut lock = request(libc::F_WRLCK, byte, GET)?;
        // SAFETY: the command reads and writes a flock.
        match unsafe { libc::fcntl(fd, libc::F_OFD_GETLK, &raw mut lock) } {
            0 => Ok(i32::from(lock.l_type) != libc::F_UNLCK),
            _ => Err(Failure::last(GET)),
        }
    }
}

#[cfg(not(target_os = "linux"))]
mod ofd {
    use super::{Failure, GET, Outcome, SET, end_of};

    pub const SHARED: i32 = 1;
    pub const NONE: i32 = 2;

    pub fn set(_fd: i32, _kind: i32, byte: u64) -> Outcome<()> {
        end_of(byte, 1, SET)?;
        Err(Failure::new(libc::ENOTSUP, SET))
    }

    pub fn is_locked(_fd: i32, byte: u64) -> Outcome<bool> {
        end_of(byte, 1, GET)?;
        Err(Failure::new(libc::ENOTSUP, GET))
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;
    use crate::scratch::Scratch;
    use std::fs::OpenOptions;

    #[test]
    fn another_description_sees_the_lock_and_its_own_does_not() {
        let file = Scratch::new();
        let other = file.open(OpenOptions::new().read(true).write(true));
        lock(file.fd(), &[100, 103]).unwrap();
        assert_eq!(find_locked(file.fd(), &[100, 103]), Ok(None));
        assert_eq!(find_locked(other.fd(), &[99, 101, 103, 100]), Ok(Some(103)));
        lock(other.fd(), &[100]).unwrap();
        unlock(file.fd(), &[103]).unwrap();
        assert_eq!(find_locked(other.fd(), &[100, 103]), Ok(Some(100)));
        drop(file);
    }

    #[test]
    fn a_failed_call_takes_nothing() {
        let file = Scratch::new();
        let other = file.open(OpenOptions::new().read(true).write(true));
        ofd::set(other.fd(), libc::F_WRLCK, 7).unwrap();
        assert_eq!(lock(file.fd(), &[5, 6, 7]).unwrap_err().errno, libc::EAGAIN);
        assert_eq!(find_locked(other.fd(), &[5, 6]), Ok(None));
        assert_eq!(lock(-1, &[1]).unwrap_err().errno, libc::EBADF);
        assert_eq!(lock(file.fd(), &[u64::MAX]).unwrap_err().errno, libc::EFBIG);
    }
}
