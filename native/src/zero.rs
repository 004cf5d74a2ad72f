//! Zeroes: writing them physically, and finding them in a buffer.

use crate::allocate::{self, Mode};
use crate::buffer::Aligned;
use crate::device;
use crate::failure::{Failure, Outcome, end_of, is_kind, need_writable, status};
use crate::os;
use crate::sparse;
use std::fs::{File, OpenOptions};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

/// How zeroes got there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// The device zeroed by itself, or the kernel on its behalf.
    Offload,
    /// Written past the page cache.
    Direct,
    /// Written through the page cache.
    Buffered,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Report {
    /// The way that moved most.
    pub way: Way,
    /// Bytes that passed through write calls.
    pub written: u64,
}

/// Bytes a write call. Measured: 1 to 8 MiB are alike, below 1 MiB direct writes slow down.
const CHUNK: u64 = 4 << 20;

/// Offsets, lengths and addresses of direct writes are multiples of this; no sector in use is larger.
const ALIGNMENT: u64 = 4096;

/// A range with less than this between its edges is not worth a descriptor of its own.
const DIRECT_FROM: u64 = 1 << 20;

/// Direct writes in flight, so that the device has one to do while the next is being submitted.
const LANES: u64 = 2;

const CALL: &str = "pwrite";

/// Writes zeroes over the range, so that it is allocated and written afterwards. Grows a file when the range passes
/// its end. Not durable until fsync.
///
/// In this order: the file system or the device zeroes (FALLOC_FL_WRITE_ZEROES, BLKZEROOUT); direct writes with
/// buffered edges; buffered writes.
pub fn write_zeroes(fd: RawFd, offset: u64, length: u64) -> Outcome<Report> {
    let end = end_of(offset, length, CALL)?;
    let flags = need_writable(fd, CALL)?;
    let stat = status(fd)?;
    let regular = is_kind(&stat, libc::S_IFREG);
    if length == 0 {
        return Ok(Report {
            way: Way::Buffered,
            written: 0,
        });
    }
    if regular && offload_file(fd, offset, length)? {
        return Ok(Report {
            way: Way::Offload,
            written: 0,
        });
    }

    // pwrite on an O_APPEND descriptor appends, and an O_DIRECT one takes no edges: both need one of their own.
    let plain = if flags & (libc::O_APPEND | O_DIRECT) == 0 {
        None
    } else {
        Some(reopen(fd, 0)?)
    };
    let plain = plain.as_ref().map_or(fd, AsRawFd::as_raw_fd);

    let inner = Span {
        start: offset.next_multiple_of(ALIGNMENT),
        end: end / ALIGNMENT * ALIGNMENT,
    };
    if is_kind(&stat, libc::S_IFBLK)
        && inner.start < inner.end
        && offloaded(device::zero_out(fd, inner.start, inner.end - inner.start))?
    {
        let edges = write_edges(plain, offset, end, inner)?;
        return Ok(Report {
            way: Way::Offload,
            written: edges,
        });
    }
    if regular {
        reserve(fd, offset, length)?;
    }
    let direct = match inner.end.saturating_sub(inner.start) {
        DIRECT_FROM.. => reopen(fd, O_DIRECT).ok(),
        _ => None,
    };
    let Some(direct) = direct else {
        fill_buffered(plain, offset, end)?;
        return Ok(Report {
            way: Way::Buffered,
            written: length,
        });
    };
    // The head before the rest and the tail after it: where nothing was reserved, the file grows in order.
    fill_buffered(plain, offset, inner.start)?;
    let passed = fill_direct(direct.as_raw_fd(), plain, inner)?;
    fill_buffered(plain, inner.end, end)?;
    let way = if passed * 2 >= length {
        Way::Direct
    } else {
        Way::Buffered
    };
    Ok(Report {
        way,
        written: length,
    })
}

#[derive(Clone, Copy)]
struct Span {
    start: u64,
    end: u64,
}

/// Whether another way must be tried after all.
fn offloaded(outcome: Outcome<()>) -> Outcome<bool> {
    match outcome {
        Ok(()) => Ok(true),
        // No room for that way says nothing of the others: the range may have its blocks.
        Err(failure) if failure.is_unsupported() || is_full(&failure) => Ok(false),
        Err(failure) => Err(failure),
    }
}

/// FALLOC_FL_WRITE_ZEROES, Linux 6.17 and later, where the device can zero by itself.
#[cfg(target_os = "linux")]
fn offload_file(fd: RawFd, offset: u64, length: u64) -> Outcome<bool> {
    const FALLOC_FL_WRITE_ZEROES: i32 = 0x80;
    if !offloaded(allocate::raw(fd, FALLOC_FL_WRITE_ZEROES, offset, length))? {
        return Ok(false);
    }
    // Written is the promise; a file system that left extents unwritten gets the writes after all.
    Ok(match sparse::fiemap(fd, offset, length, u64::MAX, true) {
        Ok(extents) => extents
            .iter()
            .all(|extent| extent.flags & sparse::UNWRITTEN == 0),
        Err(_) => true,
    })
}

#[cfg(not(target_os = "linux"))]
fn offload_file(_fd: RawFd, _offset: u64, _length: u64) -> Outcome<bool> {
    Ok(false)
}

/// Reserves the range first: the blocks become contiguous, and a full file system says so before the work.
fn reserve(fd: RawFd, offset: u64, length: u64) -> Outcome<()> {
    match allocate::fallocate(fd, Mode::Reserve, offset, length) {
        Err(failure) if is_full(&failure) && has_blocks(fd, offset, length) => Ok(()),
        Err(failure) if !failure.is_unsupported() => Err(failure),
        _ => Ok(()),
    }
}

fn is_full(failure: &Failure) -> bool {
    matches!(failure.errno, libc::ENOSPC | libc::EDQUOT)
}

/// Whether all of the range has blocks already. XFS wants as much free space again before it looks.
#[cfg(target_os = "linux")]
fn has_blocks(fd: RawFd, offset: u64, length: u64) -> bool {
    let end = offset + length;
    let mut at = offset;
    for extent in sparse::fiemap(fd, offset, length, u64::MAX, false).unwrap_or_default() {
        if extent.logical > at {
            return false;
        }
        at = at.max(extent.logical + extent.length);
    }
    at >= end
}

#[cfg(not(target_os = "linux"))]
fn has_blocks(_fd: RawFd, _offset: u64, _length: u64) -> bool {
    false
}

/// Another open file description of the same file, to write to, with the flags given.
fn reopen(fd: RawFd, flags: i32) -> Outcome<File> {
    OpenOptions::new()
        .write(true)
        .custom_flags(flags)
        .open(format!("{OPEN_FILES}/{fd}"))
        .map_err(|error| Failure::new(error.raw_os_error().unwrap_or(libc::EIO), "open"))
}

#[cfg(target_os = "linux")]
use libc::O_DIRECT;
#[cfg(target_os = "linux")]
const OPEN_FILES: &str = "/proc/self/fd";
#[cfg(not(target_os = "linux"))]
const O_DIRECT: i32 = 0;
#[cfg(not(target_os = "linux"))]
const OPEN_FILES: &str = "/dev/fd";

fn write_edges(fd: RawFd, offset: u64, end: u64, inner: Span) -> Outcome<u64> {
    fill_buffered(fd, offset, inner.start)?;
    fill_buffered(fd, inner.end, end)?;
    Ok((inner.start - offset) + (end - inner.end))
}

fn fill_buffered(fd: RawFd, mut at: u64, end: u64) -> Outcome<()> {
    if at >= end {
        return Ok(());
    }
    let zeroes = Aligned::zeroed((end - at).min(1 << 20), ALIGNMENT)?;
    while at < end {
        at += write_at(fd, &zeroes, at, end)?;
    }
    Ok(())
}

/// Writes an aligned span in chunks that the lanes take in turn. A chunk that the file system refuses to take
/// directly goes through the cache. The bytes that were written directly.
fn fill_direct(direct: RawFd, plain: RawFd, span: Span) -> Outcome<u64> {
    let zeroes = Aligned::zeroed(CHUNK.min(span.end - span.start), 2 << 20)?;
    let next = AtomicU64::new(span.start);
    let passed = AtomicU64::new(0);
    let work = || -> Outcome<()> {
        loop {
            let start = next.fetch_add(CHUNK, Ordering::Relaxed);
            if start >= span.end {
                return Ok(());
            }
            let end = (start + CHUNK).min(span.end);
            match fill_chunk(direct, plain, &zeroes, start, end) {
                Ok(bytes) => passed.fetch_add(bytes, Ordering::Relaxed),
                Err(failure) => {
                    // The other lanes stop at their next chunk.
                    next.store(span.end, Ordering::Relaxed);
                    return Err(failure);
                }
            };
        }
    };
    // Where the range passes the end (nothing was reserved), only one writer at a time keeps the file growing in order.
    let grows = span.end > status(plain)?.st_size as u64;
    let lanes = if grows {
        1
    } else {
        LANES.min((span.end - span.start).div_ceil(CHUNK))
    };
    thread::scope(|scope| {
        // A lane that cannot start is no failure: this thread does the work of all if it must.
        let others: Vec<_> = (1..lanes)
            .filter_map(|_| thread::Builder::new().spawn_scoped(scope, work).ok())
            .collect();
        let mine = work();
        others
            .into_iter()
            .map(|lane| lane.join().unwrap_or(Err(Failure::new(libc::EIO, CALL))))
            .fold(mine, Outcome::and)
    })?;
    Ok(passed.into_inner())
}

fn fill_chunk(direct: RawFd, plain: RawFd, zeroes: &[u8], start: u64, end: u64) -> Outcome<u64> {
    let mut at = start;
    while at < end {
        match write_at(direct, zeroes, at, end) {
            Ok(bytes) if bytes.is_multiple_of(ALIGNMENT) => at += bytes,
            Err(failure) if !failure.is_unsupported() => return Err(failure),
            _ => {
                fill_buffered(plain, at, end)?;
                break;
            }
        }
    }
    Ok(at - start)
}

/// Writes zeroes at `at`, not past `end`: at least one byte.
fn write_at(fd: RawFd, zeroes: &[u8], at: u64, end: u64) -> Outcome<u64> {
    let length = usize::try_from(end - at)
        .unwrap_or(usize::MAX)
        .min(zeroes.len());
    loop {
        // SAFETY: `length` bytes of `zeroes` are readable.
        let written = unsafe { os::pwrite(fd, zeroes.as_ptr().cast(), length, at as os::off_t) };
        match written {
            1.. => return Ok(written as u64),
            0 => return Err(Failure::new(libc::EIO, CALL)),
            _ => {
                let failure = Failure::last(CALL);
                if failure.errno != libc::EINTR {
                    return Err(failure);
                }
            }
        }
    }
}

/// One byte a unit: 1 where all bytes of the unit are zero. The last unit may be short; `granularity` is not 0.
pub fn zero_units(buffer: &[u8], granularity: usize) -> Vec<u8> {
    buffer
        .chunks(granularity)
        .map(|unit| u8::from(is_zero(unit)))
        .collect()
}

/// Whether every byte is zero. Reads no further than the block of 256 bytes that holds the first other.
pub fn is_zero(bytes: &[u8]) -> bool {
    let mut blocks = bytes.chunks_exact(256);
    blocks.all(|block| block.iter().fold(0, |seen, byte| seen | byte) == 0)
        && blocks.remainder().iter().all(|byte| *byte == 0)
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;
    use crate::scratch::Scratch;
    use std::os::unix::fs::{FileExt, MetadataExt};

    const MIB: u64 = 1 << 20;

    fn unwritten(file: &Scratch) -> bool {
        file.sync_all().unwrap();
        sparse::fiemap(file.fd(), 0, u32::MAX.into(), u64::MAX, true)
            .map(|found| {
                found
                    .iter()
                    .any(|extent| extent.flags & sparse::UNWRITTEN != 0)
            })
            .unwrap_or(false)
    }

    #[test]
    fn fresh_space_is_written() {
        let file = Scratch::new();
        let report = write_zeroes(file.fd(), 0, 9 * MIB).unwrap();
        assert!(report.written == 9 * MIB || report.way == Way::Offload);
        let stat = file.metadata().unwrap();
        assert_eq!((stat.len(), stat.blocks() * 512), (9 * MIB, 9 * MIB));
        assert!(!unwritten(&file));
    }

    #[test]
    fn edges_leave_their_neighbours_alone() {
        for (offset, length) in [
            (1, 10),
            (4095, 2),
            (4096, 4096),
            (777, 9 * MIB as usize + 13),
            (5000, 3),
        ] {
            let total = offset + length + 5000;
            let file = Scratch::filled(total, 0xa5);
            let report = write_zeroes(file.fd(), offset as u64, length as u64).unwrap();
            assert_eq!(report.written, length as u64);
            let bytes = file.bytes();
            assert_eq!(bytes.len(), total);
            assert!(bytes[..offset].iter().all(|byte| *byte == 0xa5));
            assert!(bytes[offset..offset + length].iter().all(|byte| *byte == 0));
            assert!(bytes[offset + length..].iter().all(|byte| *byte == 0xa5));
        }
    }

    #[test]
    fn reserved_and_punched_space_becomes_written() {
        let file = Scratch::filled(4 * MIB as usize, 1);
        allocate::fallocate(file.fd(), Mode::Punch, MIB, MIB).unwrap();
        allocate::fallocate(file.fd(), Mode::Reserve, 0, 8 * MIB).unwrap();
        write_zeroes(file.fd(), 0, 8 * MIB).unwrap();
        assert_eq!(file.metadata().unwrap().blocks() * 512, 8 * MIB);
        assert!(!unwritten(&file));
    }

    #[test]
    fn append_and_direct_descriptors_write_where_they_are_told() {
        for flags in [libc::O_APPEND, libc::O_DIRECT] {
            let file = Scratch::filled(6 * MIB as usize, 7);
            let other = file.open(
                OpenOptions::new()
                    .read(true)
                    .write(true)
                    .custom_flags(flags),
            );
            write_zeroes(other.fd(), 10, 4 * MIB).unwrap();
            let mut byte = [9; 12];
            file.read_exact_at(&mut byte, 0).unwrap();
            assert_eq!(byte, [7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 0, 0]);
            assert_eq!(file.metadata().unwrap().len(), 6 * MIB);
        }
    }

    #[test]
    fn failures_are_numbers() {
        let file = Scratch::new();
        assert_eq!(
            write_zeroes(-1, 0, 1).unwrap_err(),
            Failure::new(libc::EBADF, "fcntl")
        );
        assert_eq!(
            write_zeroes(file.read_only().fd(), 0, 1).unwrap_err(),
            Failure::new(libc::EBADF, CALL)
        );
        assert_eq!(
            write_zeroes(file.fd(), 1 << 52, 4096).unwrap_err().errno,
            libc::EFBIG
        );
        assert_eq!(
            write_zeroes(file.fd(), i64::MAX as u64, 1)
                .unwrap_err()
                .errno,
            libc::EFBIG
        );
        assert_eq!(write_zeroes(file.fd(), 5, 0).unwrap().written, 0);
        assert_eq!(file.metadata().unwrap().len(), 0);
    }

    #[test]
    fn zero_units_finds_every_position() {
        for length in [1, 255, 256, 257, 1000] {
            for at in 0..length {
                let mut bytes = vec![0; length];
                assert!(is_zero(&bytes));
                bytes[at] = 1;
                assert!(!is_zero(&bytes));
            }
        }
        let mut bytes = vec![0; 10];
        bytes[4] = 1;
        assert_eq!(zero_units(&bytes, 4), [1, 0, 1]);
        assert_eq!(zero_units(&bytes, 100), [0]);
        assert_eq!(zero_units(&[], 4), [0u8; 0]);
    }
}
