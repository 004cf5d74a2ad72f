//! Sharing the blocks of one file with another.

use crate::failure::{Outcome, end_of};
use crate::transfer::Run;

#[cfg(target_os = "linux")]
const CALL: &str = "ioctl FICLONERANGE";

/// `struct file_clone_range` of linux/fs.h.
#[cfg(target_os = "linux")]
#[repr(C)]
struct CloneRange {
    source: i64,
    offset: u64,
    length: u64,
    target_offset: u64,
}

/// As [`clone_range`] for each run, one after the other, until one fails.
pub fn clone_runs(source: i32, target: i32, runs: &[Run]) -> Outcome<()> {
    runs.iter()
        .try_for_each(|run| clone_range(source, run.from, target, run.to, run.length))
}

/// Makes `length` bytes at `to` of one file share the blocks at `from` of another; grows the file. ENOTSUP where the file
/// system cannot, the files lie on two, or the range is not whole blocks.
#[cfg(target_os = "linux")]
fn clone_range(source: i32, from: u64, target: i32, to: u64, length: u64) -> Outcome<()> {
    use crate::failure::Failure;
    end_of(from, length, CALL)?;
    end_of(to, length, CALL)?;
    if length == 0 {
        return Ok(());
    }
    let range = CloneRange {
        source: source.into(),
        offset: from,
        length,
        target_offset: to,
    };
    // _IOW(0x94, 13, struct file_clone_range)
    let request = 0x4020_940d_u64 as _;
    // SAFETY: the request reads a file_clone_range.
    match unsafe { libc::ioctl(target, request, &raw const range) } {
        0 => Ok(()),
        _ => match Failure::last(CALL) {
            failure if failure.is_unsupported() || failure.errno == libc::EXDEV => {
                Err(Failure::new(libc::EOPNOTSUPP, CALL))
            }
            failure => Err(failure),
        },
    }
}

#[cfg(not(target_os = "linux"))]
fn clone_range(_: i32, _: u64, _: i32, _: u64, _: u64) -> Outcome<()> {
    end_of(0, 0, "clone")?;
    Err(crate::failure::Failure::new(libc::ENOTSUP, "clone"))
}

#[cfg(test)]
mod tests {
    use super::clone_range;
    use crate::scratch::Scratch;

    #[test]
    fn shares_or_says_that_it_cannot() {
        let source = Scratch::filled(8192, 3);
        let target = Scratch::new();
        match clone_range(source.fd(), 0, target.fd(), 4096, 4096) {
            Ok(()) => assert_eq!(target.bytes().len(), 8192),
            Err(failure) => {
                assert!(failure.is_unsupported());
                assert_eq!(target.bytes().len(), 0);
            }
        }
    }

    #[test]
    fn ranges_are_checked() {
        assert!(clone_range(0, u64::MAX, 1, 0, 2).is_err());
        assert!(clone_range(-1, 0, -1, 0, 4096).is_err());
    }
}
