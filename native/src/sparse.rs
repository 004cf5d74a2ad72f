//! What a file holds where: data runs by SEEK_DATA and SEEK_HOLE, and the extents of the file system by FIEMAP.

use crate::failure::{Failure, Outcome, end_of, status_flags};
use crate::os;

/// Data runs within the range as start, end, start, end...; at most `limit` runs. Moves the file position.
/// A file system that cannot tell says that all is data, and so does this.
pub fn data_runs(fd: i32, offset: u64, length: u64, limit: u64) -> Outcome<Vec<u64>> {
    let end = end_of(offset, length, "lseek")?;
    let mut runs = Vec::new();
    let mut at = offset;
    while at < end && (runs.len() as u64) < limit.saturating_mul(2) {
        let start = match seek(fd, at, SEEK_DATA) {
            Ok(start) => start,
            // Past the last data, or past the end.
            Err(failure) if failure.errno == libc::ENXIO => break,
            Err(failure) if failure.is_unsupported() => {
                let size = seek(fd, 0, libc::SEEK_END)?;
                if at < size {
                    runs.extend([at, size.min(end)]);
                }
                break;
            }
            Err(failure) => return Err(failure),
        };
        if start >= end {
            break;
        }
        let stop = match seek(fd, start, SEEK_HOLE) {
            Ok(stop) => stop.min(end),
            // Cut off behind our back.
            Err(failure) if failure.errno == libc::ENXIO => break,
            Err(failure) => return Err(failure),
        };
        // A file that is written and punched meanwhile may answer anything; progress is what counts.
        if stop <= start {
            at = start + 1;
            continue;
        }
        runs.extend([start, stop]);
        at = stop;
    }
    Ok(runs)
}

#[cfg(any(target_os = "linux", target_os = "macos", target_os = "freebsd"))]
pub use libc::{SEEK_DATA, SEEK_HOLE};
#[cfg(not(any(target_os = "linux", target_os = "macos", target_os = "freebsd")))]
pub const SEEK_DATA: i32 = i32::MAX;
#[cfg(not(any(target_os = "linux", target_os = "macos", target_os = "freebsd")))]
pub const SEEK_HOLE: i32 = i32::MAX;

/// lseek(2).
pub fn seek(fd: i32, at: u64, whence: i32) -> Outcome<u64> {
    // SAFETY: plain numbers.
    let found = unsafe { os::lseek(fd, at as os::off_t, whence) };
    if found < 0 {
        Err(Failure::last("lseek"))
    } else {
        Ok(found as u64)
    }
}

pub const UNKNOWN: u32 = 0x2;
pub const DELAYED: u32 = 0x4;
pub const UNWRITTEN: u32 = 0x800;
pub const SHARED: u32 = 0x2000;
/// Encoded, encrypted, not aligned, inline or in a packed tail.
pub const NOT_PLAIN: u32 = 0x8 | 0x80 | 0x100 | 0x200 | 0x400;

/// An extent of the file system, clipped to the range that was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileExtent {
    pub logical: u64,
    /// 0 where it is unknown.
    pub physical: u64,
    pub length: u64,
    pub flags: u32,
}

/// The extents under the range, ascending, at most `limit`. `sync` writes delayed blocks out first.
pub fn fiemap(
    fd: i32,
    offset: u64,
    length: u64,
    limit: u64,
    sync: bool,
) -> Outcome<Vec<FileExtent>> {
    let end = end_of(offset, length, FIEMAP_CALL)?;
    status_flags(fd)?;
    let mut found = Vec::new();
    let mut at = offset;
    let mut sync = sync;
    while at < end && (found.len() as u64) < limit {
        let batch = fiemap_batch(fd, at, end - at, sync)?;
        sync = false;
        let Some(last) = batch.last().copied() else {
            break;
        };
        for extent in &batch {
            if let Some(clipped) = clip(extent, offset, end) {
                found.push(clipped);
            }
        }
        let next = last.logical.saturating_add(last.length);
        if last.flags & LAST != 0 || next <= at {
            break;
        }
        at = next;
    }
    found.truncate(usize::try_from(limit).unwrap_or(usize::MAX));
    Ok(found)
}

const FIEMAP_CALL: &str = "ioctl FIEMAP";
const LAST: u32 = 0x1;

fn clip(extent: &FileExtent, from: u64, to: u64) -> Option<FileExtent> {
    let start = extent.logical.max(from);
    let end = extent.logical.saturating_add(extent.length).min(to);
    if start >= end {
        return None;
    }
    let known = extent.flags & UNKNOWN == 0 && extent.physical != 0;
    Some(FileExtent {
        logical: start,
        physical: if known {
            extent.physical.saturating_add(start - extent.logical)
        } else {
            0
        },
        length: end - start,
        flags: extent.flags,
    })
}

#[cfg(target_os = "linux")]
fn fiemap_batch(fd: i32, start: u64, length: u64, sync: bool) -> Outcome<Vec<FileExtent>> {
    // linux/fiemap.h: a header of 32 bytes, then extents of 56.
    const BATCH: usize = 256;
    #[repr(C)]
    #[derive(Clone, Copy)]
    struct RawExtent {
        logical: u64,
        physical: u64,
        length: u64,
        reserved64: [u64; 2],
        flags: u32,
        reserved: [u32; 3],
    }
    #[repr(C)]
    struct Request {
        start: u64,
        length: u64,
        flags: u32,
        mapped: u32,
        count: u32,
        reserved: u32,
        extents: [RawExtent; BATCH],
    }
    const FS_IOC_FIEMAP: u64 = 0xc020_660b;
    const FLAG_SYNC: u32 = 1;
    // SAFETY: all-zero bytes are a valid Request.
    let mut request: Box<Request> = unsafe { Box::new(std::mem::zeroed()) };
    request.start = start;
    request.length = length;
    request.flags = if sync { FLAG_SYNC } else { 0 };
    request.count = BATCH as u32;
    // SAFETY: the kernel writes at most `count` extents behind the header, which is what `extents` holds.
    if unsafe { libc::ioctl(fd, FS_IOC_FIEMAP as _, &raw mut *request) } != 0 {
        return Err(Failure::last(FIEMAP_CALL));
    }
    let mapped = (request.mapped as usize).min(BATCH);
    Ok(request.extents[..mapped]
        .iter()
        .map(|raw| FileExtent {
            logical: raw.logical,
            physical: raw.physical,
            length: raw.length,
            flags: raw.flags,
        })
        .collect())
}

#[cfg(not(target_os = "linux"))]
fn fiemap_batch(_fd: i32, _start: u64, _length: u64, _sync: bool) -> Outcome<Vec<FileExtent>> {
    Err(Failure::new(libc::ENOTSUP, FIEMAP_CALL))
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;
    use crate::allocate::{Mode, fallocate};
    use crate::scratch::Scratch;
    use std::os::unix::fs::FileExt;

    const KIB: u64 = 1 << 10;

    fn sparse() -> Scratch {
        let file = Scratch::new();
        file.set_len(1024 * KIB).unwrap();
        for at in [0, 256 * KIB, 512 * KIB] {
            file.write_all_at(&[1; 65536], at).unwrap();
        }
        file.sync_all().unwrap();
        file
    }

    #[test]
    fn runs_are_clipped_and_limited() {
        let file = sparse();
        let k = |values: &[u64]| values.iter().map(|value| value * KIB).collect::<Vec<_>>();
        assert_eq!(
            data_runs(file.fd(), 0, 4096 * KIB, 10).unwrap(),
            k(&[0, 64, 256, 320, 512, 576])
        );
        assert_eq!(
            data_runs(file.fd(), 32 * KIB, 240 * KIB, 10).unwrap(),
            k(&[32, 64, 256, 272])
        );
        assert_eq!(data_runs(file.fd(), 0, 4096 * KIB, 1).unwrap(), k(&[0, 64]));
        assert_eq!(data_runs(file.fd(), 64 * KIB, 100 * KIB, 10).unwrap(), []);
        assert_eq!(data_runs(file.fd(), 8192 * KIB, KIB, 10).unwrap(), []);
        assert_eq!(data_runs(-1, 0, 1, 1).unwrap_err().errno, libc::EBADF);
    }

    #[test]
    fn fiemap_tells_unwritten_from_written() {
        let file = sparse();
        fallocate(file.fd(), Mode::Reserve, 768 * KIB, 64 * KIB).unwrap();
        let found = match fiemap(file.fd(), 32 * KIB, 4096 * KIB, 100, true) {
            Err(failure) if failure.is_unsupported() => return,
            found => found.unwrap(),
        };
        let kinds: Vec<_> = found
            .iter()
            .map(|e| (e.logical / KIB, e.length / KIB, e.flags & UNWRITTEN != 0))
            .collect();
        assert_eq!(
            kinds,
            [
                (32, 32, false),
                (256, 64, false),
                (512, 64, false),
                (768, 64, true)
            ]
        );
        assert!(found.iter().all(|extent| extent.physical != 0));
        assert_eq!(fiemap(file.fd(), 0, 4096 * KIB, 2, true).unwrap().len(), 2);
        assert_eq!(fiemap(file.fd(), 0, 0, 2, true).unwrap(), []);
        assert_eq!(
            fiemap(-1, 0, 1, 1, false).unwrap_err(),
            Failure::new(libc::EBADF, "fcntl")
        );
    }

    #[test]
    fn more_extents_than_a_batch() {
        let file = Scratch::new();
        for index in 0..300 {
            file.write_all_at(&[1; 4096], index * 64 * KIB).unwrap();
        }
        let found = match fiemap(file.fd(), 0, u32::MAX.into(), 1000, true) {
            Err(failure) if failure.is_unsupported() => return,
            found => found.unwrap(),
        };
        assert_eq!(found.len(), 300);
        assert!(
            found
                .windows(2)
                .all(|pair| pair[0].logical < pair[1].logical)
        );
    }
}
