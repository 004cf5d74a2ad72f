//! Block devices: sizes, discard, and zeroing by the device.

use crate::failure::{Failure, Outcome, end_of, is_kind, need_writable, status};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Info {
    pub size: u64,
    pub logical_sector: u32,
    pub physical_sector: u32,
}

/// Whether the descriptor is open on a block device.
pub fn is_block(fd: i32) -> Outcome<bool> {
    Ok(is_kind(&status(fd)?, libc::S_IFBLK))
}

/// Size and sectors. ENOTTY when it is no block device.
pub fn info(fd: i32) -> Outcome<Info> {
    if !is_block(fd)? {
        return Err(Failure::new(libc::ENOTTY, "ioctl BLKGETSIZE64"));
    }
    linux::info(fd)
}

/// BLKDISCARD. Offset and length are multiples of 512.
pub fn discard(fd: i32, offset: u64, length: u64) -> Outcome<()> {
    range(fd, "ioctl BLKDISCARD", offset, length, linux::discard)
}

/// BLKZEROOUT. Offset and length are multiples of 512.
pub fn zero_out(fd: i32, offset: u64, length: u64) -> Outcome<()> {
    range(fd, "ioctl BLKZEROOUT", offset, length, linux::zero_out)
}

fn range(
    fd: i32,
    call: &'static str,
    offset: u64,
    length: u64,
    work: fn(i32, &'static str, &[u64; 2]) -> Outcome<()>,
) -> Outcome<()> {
    if length == 0 {
        return Ok(());
    }
    end_of(offset, length, call)?;
    if !is_block(fd)? {
        return Err(Failure::new(libc::ENOTTY, call));
    }
    need_writable(fd, call)?;
    work(fd, call, &[offset, length])
}

#[cfg(target_os = "linux")]
mod linux {
    use super::{Failure, Info, Outcome};

    // linux/fs.h. The first is _IOR with a size_t, the others carry no size.
    const BLKGETSIZE64: u64 = 0x8000_1272 | ((size_of::<usize>() as u64) << 16);
    const BLKSSZGET: u64 = 0x1268;
    const BLKPBSZGET: u64 = 0x127b;
    const BLKDISCARD: u64 = 0x1277;
    const BLKZEROOUT: u64 = 0x127f;

    pub fn info(fd: i32) -> Outcome<Info> {
        Ok(Info {
            size: get(fd, BLKGETSIZE64, "ioctl BLKGETSIZE64", 0u64)?,
            logical_sector: get(fd, BLKSSZGET, "ioctl BLKSSZGET", 0u32)?,
            physical_sector: get(fd, BLKPBSZGET, "ioctl BLKPBSZGET", 0u32)?,
        })
    }

    pub fn discard(fd: i32, call: &'static str, range: &[u64; 2]) -> Outcome<()> {
        set(fd, BLKDISCARD, call, range)
    }

    pub fn zero_out(fd: i32, call: &'static str, range: &[u64; 2]) -> Outcome<()> {
        set(fd, BLKZEROOUT, call, range)
    }

    fn get<T>(fd: i32, request: u64, call: &'static str, mut value: T) -> Outcome<T> {
        // SAFETY: each request above writes a value of exactly the type that `info` passes.
        match unsafe { libc::ioctl(fd, request as _, &raw mut value) } {
            0 => Ok(value),
            _ => Err(Failure::last(call)),
        }
    }

    fn set(fd: i32, request: u64, call: &'static str, range: &[u64; 2]) -> Outcome<()> {
        // SAFETY: both requests read two u64.
        match unsafe { libc::ioctl(fd, request as _, range.as_ptr()) } {
            0 => Ok(()),
            _ => Err(Failure::last(call)),
        }
    }
}

#[cfg(not(target_os = "linux"))]
mod linux {
    use super::{Failure, Info, Outcome};

    pub fn info(_fd: i32) -> Outcome<Info> {
        Err(Failure::new(libc::ENOTSUP, "ioctl BLKGETSIZE64"))
    }

    pub fn discard(_fd: i32, call: &'static str, _range: &[u64; 2]) -> Outcome<()> {
        Err(Failure::new(libc::ENOTSUP, call))
    }

    pub fn zero_out(_fd: i32, call: &'static str, _range: &[u64; 2]) -> Outcome<()> {
        Err(Failure::new(libc::ENOTSUP, call))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scratch::Scratch;

    #[test]
    fn a_file_is_no_device() {
        let file = Scratch::filled(4096, 1);
        assert_eq!(info(file.fd()).unwrap_err().errno, libc::ENOTTY);
        assert_eq!(discard(file.fd(), 0, 4096).unwrap_err().errno, libc::ENOTTY);
        assert_eq!(
            zero_out(file.fd(), 0, 4096).unwrap_err().errno,
            libc::ENOTTY
        );
        assert_eq!(info(-1).unwrap_err().errno, libc::EBADF);
        assert_eq!(
            discard(file.fd(), i64::MAX as u64, 512).unwrap_err().errno,
            libc::EFBIG
        );
    }
}
