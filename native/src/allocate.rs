//! fallocate(2).

use crate::failure::{Failure, Outcome, end_of, need_writable};
#[cfg(target_os = "linux")]
use crate::os;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    Reserve,
    ReserveKeepSize,
    Punch,
    ZeroRange,
}

impl Mode {
    /// The mode that JavaScript names by number, in the order of the enum.
    pub fn from_number(number: f64) -> Outcome<Self> {
        [
            Self::Reserve,
            Self::ReserveKeepSize,
            Self::Punch,
            Self::ZeroRange,
        ]
        .into_iter()
        .find(|mode| *mode as u8 as f64 == number)
        .ok_or(Failure::new(libc::EINVAL, CALL))
    }
}

const CALL: &str = "fallocate";

/// Allocates, punches or zeroes the range. A range of no bytes is done at once. EBADF, ENOSPC, EFBIG, EOPNOTSUPP...
pub fn fallocate(fd: i32, mode: Mode, offset: u64, length: u64) -> Outcome<()> {
    if length == 0 {
        return Ok(());
    }
    end_of(offset, length, CALL)?;
    need_writable(fd, CALL)?;
    call(fd, mode, offset, length)
}

#[cfg(target_os = "linux")]
fn call(fd: i32, mode: Mode, offset: u64, length: u64) -> Outcome<()> {
    raw(
        fd,
        match mode {
            Mode::Reserve => 0,
            Mode::ReserveKeepSize => libc::FALLOC_FL_KEEP_SIZE,
            Mode::Punch => libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE,
            Mode::ZeroRange => libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE,
        },
        offset,
        length,
    )
}

#[cfg(not(target_os = "linux"))]
fn call(_fd: i32, _mode: Mode, _offset: u64, _length: u64) -> Outcome<()> {
    Err(Failure::new(libc::ENOTSUP, CALL))
}

/// fallocate(2) with mode bits; the range is checked by the caller.
#[cfg(target_os = "linux")]
pub fn raw(fd: i32, bits: i32, offset: u64, length: u64) -> Outcome<()> {
    loop {
        // SAFETY: plain numbers.
        if unsafe { os::fallocate(fd, bits, offset as os::off_t, length as os::off_t) } == 0 {
            return Ok(());
        }
        let failure = Failure::last(CALL);
        if failure.errno != libc::EINTR {
            return Err(failure);
        }
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;
    use crate::scratch::Scratch;
    use std::os::unix::fs::MetadataExt;

    const MIB: u64 = 1 << 20;

    #[test]
    fn reserve_grows_and_keep_size_does_not() {
        let file = Scratch::new();
        fallocate(file.fd(), Mode::ReserveKeepSize, 0, MIB).unwrap();
        let stat = file.metadata().unwrap();
        assert_eq!((stat.len(), stat.blocks() * 512), (0, MIB));
        fallocate(file.fd(), Mode::Reserve, 0, 2 * MIB).unwrap();
        let stat = file.metadata().unwrap();
        assert_eq!((stat.len(), stat.blocks() * 512), (2 * MIB, 2 * MIB));
    }

    #[test]
    fn punch_gives_back_and_zero_range_keeps() {
        let file = Scratch::filled(MIB as usize, 0x5a);
        fallocate(file.fd(), Mode::ZeroRange, 0, MIB).unwrap();
        assert_eq!(file.metadata().unwrap().blocks() * 512, MIB);
        assert_eq!(file.metadata().unwrap().len(), MIB);
        assert!(file.bytes().iter().all(|byte| *byte == 0));
        fallocate(file.fd(), Mode::Punch, 0, 2 * MIB).unwrap();
        assert_eq!(file.metadata().unwrap().blocks(), 0);
    }

    #[test]
    fn failures_are_numbers() {
        let file = Scratch::new();
        let huge = fallocate(file.fd(), Mode::Reserve, 1 << 52, 1).unwrap_err();
        assert_eq!(huge, Failure::new(libc::EFBIG, CALL));
        let read_only = file.read_only();
        assert_eq!(
            fallocate(read_only.fd(), Mode::Reserve, 0, 1).unwrap_err(),
            Failure::new(libc::EBADF, CALL)
        );
        assert_eq!(
            fallocate(-1, Mode::Reserve, 0, 1).unwrap_err(),
            Failure::new(libc::EBADF, "fcntl")
        );
        assert_eq!(fallocate(-1, Mode::Punch, 0, 0), Ok(()));
        assert!(Mode::from_number(f64::NAN).is_err() && Mode::from_number(4.0).is_err());
        assert_eq!(Mode::from_number(3.0), Ok(Mode::ZeroRange));
    }
}
