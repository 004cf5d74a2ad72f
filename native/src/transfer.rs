//! Many ranges of one file to another in one call, and looking for zeroes in many.

use crate::failure::{Failure, Outcome, end_of, status_flags};
use crate::zero::zero_units;
use std::cell::RefCell;
use std::fs::File;
use std::io::ErrorKind;
use std::mem::ManuallyDrop;
use std::os::fd::{FromRawFd, RawFd};
use std::os::unix::fs::FileExt;

const READ: &str = "pread";
const WRITE: &str = "pwrite";

/// Bytes read before they are written: what was read is still in the processor's cache then.
const STEP: usize = 256 << 10;

thread_local! {
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// A range and where it goes.
#[derive(Debug, Clone, Copy)]
pub struct Run {
    pub from: u64,
    pub to: u64,
    pub length: u64,
}

/// An open descriptor that stays somebody else's.
fn borrowed(fd: RawFd) -> Outcome<ManuallyDrop<File>> {
    status_flags(fd)?;
    // SAFETY: the descriptor is open, and is not closed here.
    Ok(ManuallyDrop::new(unsafe { File::from_raw_fd(fd) }))
}

fn failure(error: &std::io::Error, call: &'static str) -> Failure {
    match error.kind() {
        // The file ends before the range does.
        ErrorKind::UnexpectedEof => Failure::new(libc::EIO, call),
        _ => Failure::new(error.raw_os_error().unwrap_or(libc::EIO), call),
    }
}

/// Copies the runs one after the other; the bytes that were written. Units of `skip` bytes, counted from the start of
/// each run, that are all zeroes are left out; 0: everything is written. EIO from `pread` where the source ends early.
pub fn copy_runs(source: RawFd, target: RawFd, runs: &[Run], skip: usize) -> Outcome<u64> {
    let (source, target) = (borrowed(source)?, borrowed(target)?);
    // Whole units a step.
    let step = if skip == 0 {
        STEP
    } else {
        STEP.div_ceil(skip) * skip
    };
    let mut written = 0;
    BUFFER.with_borrow_mut(|buffer| {
        for run in runs {
            end_of(run.from, run.length, READ)?;
            end_of(run.to, run.length, WRITE)?;
            let mut done = 0;
            while done < run.length {
                let length = usize::try_from(run.length - done).map_or(step, |rest| rest.min(step));
                let bytes = fill(&source, buffer, run.from + done, length)?;
                written += put(&target, bytes, run.to + done, skip)?;
                done += length as u64;
            }
        }
        Ok(written)
    })
}

fn fill<'a>(source: &File, buffer: &'a mut Vec<u8>, at: u64, length: usize) -> Outcome<&'a [u8]> {
    if buffer.len() < length {
        buffer.resize(length, 0);
    }
    let bytes = &mut buffer[..length];
    source
        .read_exact_at(bytes, at)
        .map_err(|error| failure(&error, READ))?;
    Ok(bytes)
}

/// Writes what is not zero, in as few calls as that takes.
fn put(target: &File, bytes: &[u8], at: u64, skip: usize) -> Outcome<u64> {
    if skip == 0 {
        target
            .write_all_at(bytes, at)
            .map_err(|error| failure(&error, WRITE))?;
        return Ok(bytes.len() as u64);
    }
    let zero = zero_units(bytes, skip);
    let mut written = 0;
    let mut first = 0;
    while first < zero.len() {
        let same = zero[first..]
            .iter()
            .take_while(|&&unit| unit == zero[first]);
        let next = first + same.count();
        if zero[first] == 0 {
            let (start, end) = (first * skip, (next * skip).min(bytes.len()));
            written += put(target, &bytes[start..end], at + start as u64, 0)?;
        }
        first = next;
    }
    Ok(written)
}

/// One byte a unit of each range (offset, length), the ranges one after the other: 1 where it is all zeroes. The last
/// unit of a range may be short.
pub fn zero_ranges(fd: RawFd, ranges: &[(u64, u64)], unit: usize) -> Outcome<Vec<u8>> {
    let source = borrowed(fd)?;
    let step = STEP.div_ceil(unit) * unit;
    let mut found = Vec::new();
    BUFFER.with_borrow_mut(|buffer| {
        for &(at, length) in ranges {
            end_of(at, length, READ)?;
            let mut done = 0;
            while done < length {
                let part = usize::try_from(length - done).map_or(step, |rest| rest.min(step));
                found.extend(zero_units(fill(&source, buffer, at + done, part)?, unit));
                done += part as u64;
            }
        }
        Ok(found)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scratch::Scratch;
    use std::os::unix::fs::MetadataExt;

    fn sample() -> Vec<u8> {
        let mut bytes = vec![0; 1 << 20];
        for (index, byte) in bytes.iter_mut().enumerate() {
            if (index >> 14) % 3 == 0 {
                *byte = (index % 251) as u8 + 1;
            }
        }
        bytes
    }

    fn with(bytes: &[u8]) -> Scratch {
        let scratch = Scratch::new();
        borrowed(scratch.fd())
            .unwrap()
            .write_all_at(bytes, 0)
            .unwrap();
        scratch
    }

    #[test]
    fn runs_land_where_they_should() {
        let bytes = sample();
        for skip in [0, 4096, 65536, 3000] {
            let (source, target) = (with(&bytes), Scratch::new());
            borrowed(target.fd()).unwrap().set_len(1 << 20).unwrap();
            let runs = [
                Run {
                    from: 0,
                    to: 500_000,
                    length: 400_000,
                },
                Run {
                    from: 600_001,
                    to: 77,
                    length: 300_001,
                },
                Run {
                    from: 5,
                    to: 1_000_000,
                    length: 0,
                },
            ];
            let written = copy_runs(source.fd(), target.fd(), &runs, skip).unwrap();
            assert!(if skip == 0 || skip > 32768 {
                written == 700_001
            } else {
                written < 700_001
            });
            let mut expected = vec![0; 1 << 20];
            expected[500_000..900_000].copy_from_slice(&bytes[..400_000]);
            expected[77..300_078].copy_from_slice(&bytes[600_001..900_002]);
            assert!(target.bytes() == expected, "{skip}");
        }
    }

    #[test]
    fn zeroes_stay_holes() {
        let (source, target) = (Scratch::filled(1 << 20, 0), Scratch::new());
        let runs = [Run {
            from: 0,
            to: 0,
            length: 1 << 20,
        }];
        assert_eq!(copy_runs(source.fd(), target.fd(), &runs, 4096), Ok(0));
        assert_eq!(
            borrowed(target.fd()).unwrap().metadata().unwrap().blocks(),
            0
        );
    }

    #[test]
    fn zeroes_are_found_unit_by_unit() {
        let source = with(&sample());
        let ranges = [(0, 65536), (16384, 40_000)];
        assert_eq!(
            zero_ranges(source.fd(), &ranges, 16384),
            Ok(vec![0, 1, 1, 0, 1, 1, 0])
        );
        assert_eq!(zero_ranges(source.fd(), &[], 512), Ok(vec![]));
    }

    #[test]
    fn an_early_end_and_bad_descriptors_are_told() {
        let (source, target) = (Scratch::filled(5000, 1), Scratch::new());
        let runs = [Run {
            from: 4000,
            to: 0,
            length: 2000,
        }];
        let end = Failure::new(libc::EIO, READ);
        assert_eq!(copy_runs(source.fd(), target.fd(), &runs, 0), Err(end));
        assert_eq!(zero_ranges(source.fd(), &[(4000, 2000)], 512), Err(end));
        assert!(copy_runs(source.fd(), source.read_only().fd(), &runs[..0], 0).is_ok());
        let runs = [Run {
            from: 0,
            to: 0,
            length: 5000,
        }];
        assert!(copy_runs(source.fd(), source.read_only().fd(), &runs, 0).is_err());
        assert!(copy_runs(-1, target.fd(), &runs, 0).is_err());
        assert!(zero_ranges(-1, &[], 512).is_err());
    }
}
