//! The one error of the crate: the number that the system gave, and the call that it came from.

use std::fmt;

/// A failed system call. TypeScript turns it into a SpindleError (`src/native/errno.ts`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Failure {
    pub errno: i32,
    pub call: &'static str,
}

pub type Outcome<T> = Result<T, Failure>;

impl Failure {
    pub const fn new(errno: i32, call: &'static str) -> Self {
        Self { errno, call }
    }

    /// The failure of the system call that this thread made last.
    pub fn last(call: &'static str) -> Self {
        let errno = std::io::Error::last_os_error()
            .raw_os_error()
            .unwrap_or(libc::EIO);
        Self { errno, call }
    }

    /// Whether the platform or the file system cannot do it at all, so that another way may.
    pub fn is_unsupported(&self) -> bool {
        // EOPNOTSUPP and ENOTSUP are one number on Linux and two elsewhere.
        self.errno == libc::EOPNOTSUPP
            || self.errno == libc::ENOTSUP
            || matches!(
                self.errno,
                libc::ENOSYS | libc::ENOTTY | libc::EINVAL | libc::ENODEV
            )
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "ERRNO:{}:{}", self.errno, self.call)
    }
}

/// Largest offset that a JavaScript number holds exactly.
const MAX_SAFE: f64 = 9_007_199_254_740_991.0;

/// A number from JavaScript as an offset or a length. EINVAL for NaN, fractions, negatives and 2^53 or more.
pub fn whole(value: f64, call: &'static str) -> Outcome<u64> {
    if (0.0..=MAX_SAFE).contains(&value) && value.fract() == 0.0 {
        Ok(value as u64)
    } else {
        Err(Failure::new(libc::EINVAL, call))
    }
}

/// A number from JavaScript as a descriptor. EBADF for anything that is none.
pub fn descriptor(value: f64) -> Outcome<i32> {
    if (0.0..=f64::from(i32::MAX)).contains(&value) && value.fract() == 0.0 {
        Ok(value as i32)
    } else {
        Err(Failure::new(libc::EBADF, "fcntl"))
    }
}

/// Where a range ends. EFBIG when that passes what `off_t` holds.
pub fn end_of(offset: u64, length: u64, call: &'static str) -> Outcome<u64> {
    match offset.checked_add(length) {
        Some(end) if end <= i64::MAX as u64 => Ok(end),
        _ => Err(Failure::new(libc::EFBIG, call)),
    }
}

/// Status flags of a descriptor (O_DIRECT, O_APPEND, the access mode). EBADF from `fcntl` means that it is not open.
pub fn status_flags(fd: i32) -> Outcome<i32> {
    // SAFETY: F_GETFL takes no pointer.
    match unsafe { libc::fcntl(fd, libc::F_GETFL) } {
        -1 => Err(Failure::last("fcntl")),
        flags => Ok(flags),
    }
}

/// Refuses a descriptor that cannot be written: EBADF, named after `call`, which is what tells it from a closed one.
pub fn need_writable(fd: i32, call: &'static str) -> Outcome<i32> {
    let flags = status_flags(fd)?;
    if flags & libc::O_ACCMODE == libc::O_RDONLY {
        Err(Failure::new(libc::EBADF, call))
    } else {
        Ok(flags)
    }
}

/// What a descriptor is open on.
pub fn status(fd: i32) -> Outcome<libc::stat> {
    let mut stat = std::mem::MaybeUninit::<libc::stat>::zeroed();
    // SAFETY: fstat fills the structure or fails; all-zero bytes are a valid `stat`.
    match unsafe { libc::fstat(fd, stat.as_mut_ptr()) } {
        0 => Ok(unsafe { stat.assume_init() }),
        _ => Err(Failure::last("fstat")),
    }
}

/// Whether `stat` is of the file type `kind` (S_IFREG, S_IFBLK...).
pub fn is_kind(stat: &libc::stat, kind: libc::mode_t) -> bool {
    stat.st_mode & libc::S_IFMT == kind
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_checked_not_rounded() {
        assert_eq!(whole(4096.0, "x"), Ok(4096));
        for bad in [
            -1.0,
            -0.5,
            0.5,
            f64::NAN,
            f64::INFINITY,
            9_007_199_254_740_992.0,
        ] {
            assert_eq!(whole(bad, "x").unwrap_err().errno, libc::EINVAL, "{bad}");
        }
        for bad in [-1.0, f64::NAN, 1.5, 4e9] {
            assert_eq!(
                descriptor(bad).unwrap_err(),
                Failure::new(libc::EBADF, "fcntl"),
                "{bad}"
            );
        }
        assert_eq!(
            end_of(i64::MAX as u64, 1, "x").unwrap_err().errno,
            libc::EFBIG
        );
    }

    #[test]
    fn display_is_what_typescript_parses() {
        assert_eq!(
            Failure::new(28, "fallocate").to_string(),
            "ERRNO:28:fallocate"
        );
    }
}
