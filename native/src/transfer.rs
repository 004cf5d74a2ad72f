//! Many ranges of one file to another in one call, and looking for zeroes in many.

use crate::failure::{Failure, Outcome, end_of, status_flags};
use crate::sparse::{SEEK_DATA, SEEK_HOLE, seek};
use crate::zero::{is_zero, zero_units};
use std::cell::RefCell;
use std::fs::File;
use std::io::ErrorKind;
use std::mem::ManuallyDrop;
use std::os::fd::{AsRawFd, FromRawFd, RawFd};
use std::os::unix::fs::FileExt;

pub const READ: &str = "pread";
pub const WRITE: &str = "pwrite";

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
pub fn borrowed(fd: RawFd) -> Outcome<ManuallyDrop<File>> {
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
    let (mut source, target) = (Source::new(source, skip > 0)?, borrowed(target)?);
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
                let bytes = source.fill(buffer, run.from + done, length)?;
                written += put(&target, bytes, run.to + done, skip)?;
                done += length as u64;
            }
        }
        Ok(written)
    })
}

/// A file that is read; with `holes`, what it does not hold is not read but known to be zeroes.
pub struct Source {
    file: ManuallyDrop<File>,
    holes: bool,
    /// Where data was found last.
    data: (u64, u64),
}

impl Source {
    pub fn new(fd: RawFd, holes: bool) -> Outcome<Self> {
        let file = borrowed(fd)?;
        // Devices have no holes to speak of.
        let regular = file.metadata().is_ok_and(|about| about.is_file());
        Ok(Self {
            file,
            holes: holes && regular,
            data: (0, 0),
        })
    }

    /// The bytes at `at`, in `buffer`. EIO where the file ends before they do.
    pub fn fill<'a>(
        &mut self,
        buffer: &'a mut Vec<u8>,
        at: u64,
        length: usize,
    ) -> Outcome<&'a mut [u8]> {
        if buffer.len() < length {
            buffer.resize(length, 0);
        }
        let bytes = &mut buffer[..length];
        self.read(bytes, at)?;
        Ok(bytes)
    }

    /// As [`Self::fill`], into all of `into`.
    pub fn read(&mut self, into: &mut [u8], at: u64) -> Outcome<()> {
        let mut done = 0;
        while done < into.len() {
            let here = at + done as u64;
            let (start, stop) = self.next_data(here, (into.len() - done) as u64)?;
            let zeroes = usize::try_from(start - here).map_or(into.len(), |gap| done + gap);
            let end =
                usize::try_from(stop - here).map_or(into.len(), |gap| (done + gap).min(into.len()));
            into[done..zeroes].fill(0);
            self.file
                .read_exact_at(&mut into[zeroes..end], start)
                .map_err(|error| failure(&error, READ))?;
            done = end;
        }
        Ok(())
    }

    /// Whether a range is all zeroes; of data that is not, little is read.
    fn is_zero(&mut self, buffer: &mut Vec<u8>, start: u64, end: u64) -> Outcome<bool> {
        let mut at = start;
        let mut step = FIRST;
        while at < end {
            let (data, stop) = self.next_data(at, end - at)?;
            let length = usize::try_from(stop - data).map_or(step, |rest| rest.min(step));
            if length > 0 && !is_zero(self.fill(buffer, data, length)?) {
                return Ok(false);
            }
            at = data + length as u64;
            step = STEP;
        }
        Ok(true)
    }

    /// Has the kernel begin to read, as far as it is not in memory: what is read of a range may be here and there.
    #[cfg(target_os = "linux")]
    fn wanted_soon(&self, at: u64, length: u64) {
        // SAFETY: plain numbers; it is advice, whatever comes of it.
        let _ = unsafe {
            libc::posix_fadvise(
                self.file.as_raw_fd(),
                at as libc::off_t,
                length as libc::off_t,
                libc::POSIX_FADV_WILLNEED,
            )
        };
    }

    #[cfg(not(target_os = "linux"))]
    fn wanted_soon(&self, _at: u64, _length: u64) {}

    /// The first data within a range, or the start of it; at its end, and empty, where there is none.
    fn next_data(&mut self, at: u64, length: u64) -> Outcome<(u64, u64)> {
        let end = end_of(at, length, READ)?;
        if !self.holes {
            return Ok((at, end));
        }
        let (start, stop) = self.data;
        if start <= at && at < stop {
            return Ok((at, stop.min(end)));
        }
        match seek(self.file.as_raw_fd(), at, SEEK_DATA) {
            // Where it ends is not asked: that takes as long as there are extents up to there.
            Ok(start) if start == at => Ok((at, end.min(at + STEP as u64))),
            Ok(start) if start >= end => Ok((end, end)),
            Ok(start) => {
                // After a hole, the next is near for the most part.
                let stop = seek(self.file.as_raw_fd(), start, SEEK_HOLE).unwrap_or(end);
                self.data = (start, stop);
                Ok((start, stop.clamp(start, end)))
            }
            // Nothing but a hole: up to the end of the file, and not further.
            Err(failure) if failure.errno == libc::ENXIO => {
                let size = self.file.metadata().map_or(0, |about| about.len());
                if size < end {
                    return Err(Failure::new(libc::EIO, READ));
                }
                Ok((end, end))
            }
            Err(_) => {
                self.holes = false;
                Ok((at, end))
            }
        }
    }
}

/// Writes what is not zero, in as few calls as that takes.
pub fn put(target: &File, bytes: &[u8], at: u64, skip: usize) -> Outcome<u64> {
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

/// What is read of a unit first: that mostly tells.
const FIRST: usize = 4096;

/// One byte a unit of each range (offset, length), the ranges one after the other: 1 where it is all zeroes. The last
/// unit of a range may be short.
pub fn zero_ranges(fd: RawFd, ranges: &[(u64, u64)], unit: usize) -> Outcome<Vec<u8>> {
    let mut source = Source::new(fd, true)?;
    let mut found = Vec::new();
    BUFFER.with_borrow_mut(|buffer| {
        for &(at, length) in ranges {
            let end = end_of(at, length, READ)?;
            source.wanted_soon(at, length);
            let mut here = at;
            while here < end {
                let stop = end.min(here.saturating_add(unit as u64));
                found.push(u8::from(source.is_zero(buffer, here, stop)?));
                here = stop;
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
    fn holes_read_as_zeroes_up_to_the_end_of_the_file() {
        let source = Scratch::new();
        let file = borrowed(source.fd()).unwrap();
        file.write_all_at(&[1; 5000], 100_000).unwrap();
        file.write_all_at(&[2; 3000], 300_000).unwrap();
        file.set_len(500_000).unwrap();
        let mut expected = vec![0; 500_000];
        expected[100_000..105_000].fill(1);
        expected[300_000..303_000].fill(2);
        for holes in [true, false] {
            let mut reader = Source::new(source.fd(), holes).unwrap();
            let mut buffer = Vec::new();
            for (at, length) in [
                (0, 500_000),
                (299_999, 3),
                (302_000, 198_000),
                (90_000, 9),
                (5, 0),
            ] {
                assert_eq!(
                    reader.fill(&mut buffer, at as u64, length).unwrap(),
                    &expected[at..at + length]
                );
            }
            let end = Failure::new(libc::EIO, READ);
            assert_eq!(reader.fill(&mut buffer, 499_999, 2), Err(end));
            assert_eq!(reader.fill(&mut buffer, 100_000, 400_001), Err(end));
            assert_eq!(reader.fill(&mut buffer, 600_000, 1), Err(end));
        }
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
