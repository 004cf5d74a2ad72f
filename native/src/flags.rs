//! Switches that file systems have for single files: no copy-on-write (btrfs), and the extent size hint (XFS).

use crate::failure::{Failure, Outcome, status_flags};

const GET_FLAGS: &str = "ioctl FS_IOC_GETFLAGS";
const SET_FLAGS: &str = "ioctl FS_IOC_SETFLAGS";
const GET_ATTRIBUTES: &str = "ioctl FS_IOC_FSGETXATTR";
const SET_ATTRIBUTES: &str = "ioctl FS_IOC_FSSETXATTR";

/// `struct fsxattr` of linux/fs.h.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
struct Attributes {
    flags: u32,
    extent_size: u32,
    extents: u32,
    project: u32,
    cow_extent_size: u32,
    pad: [u8; 8],
}

/// FS_NOCOW_FL.
const NO_COW: libc::c_int = 0x0080_0000;
/// FS_XFLAG_EXTSIZE.
const HAS_EXTENT_SIZE: u32 = 0x0000_0800;

/// Turns copy-on-write off. Whether it is off afterwards: file systems without the switch refuse it, and those with it
/// may ignore it in silence for a file that holds data.
pub fn set_no_cow(fd: i32) -> Outcome<bool> {
    status_flags(fd)?;
    let Some(flags) = supported(linux::flags(fd))? else {
        return Ok(false);
    };
    if flags & NO_COW != 0 {
        return Ok(true);
    }
    if supported(linux::set_flags(fd, flags | NO_COW))?.is_none() {
        return Ok(false);
    }
    Ok(linux::flags(fd)? & NO_COW != 0)
}

/// The extent size hint in bytes; 0 where there is none.
pub fn extent_size_hint(fd: i32) -> Outcome<u32> {
    status_flags(fd)?;
    let found = supported(linux::attributes(fd))?.unwrap_or_default();
    Ok(if found.flags & HAS_EXTENT_SIZE == 0 {
        0
    } else {
        found.extent_size
    })
}

/// Sets the hint, or takes it away (0). ENOTSUP where the file system has none, or ignores it in silence; EINVAL for a
/// size that is not whole blocks, and for a file that holds data.
pub fn set_extent_size_hint(fd: i32, bytes: u64) -> Outcome<()> {
    let hint = u32::try_from(bytes).map_err(|_| Failure::new(libc::EINVAL, SET_ATTRIBUTES))?;
    if extent_size_hint(fd)? == hint {
        return Ok(());
    }
    let mut wanted = linux::attributes(fd)?;
    wanted.extent_size = hint;
    wanted.flags &= !HAS_EXTENT_SIZE;
    if hint > 0 {
        wanted.flags |= HAS_EXTENT_SIZE;
    }
    linux::set_attributes(fd, &wanted)?;
    if extent_size_hint(fd)? == hint {
        Ok(())
    } else {
        Err(Failure::new(libc::EOPNOTSUPP, SET_ATTRIBUTES))
    }
}

/// `None` where the platform or the file system does not know the request.
fn supported<T>(outcome: Outcome<T>) -> Outcome<Option<T>> {
    match outcome {
        Ok(value) => Ok(Some(value)),
        Err(failure) if failure.is_unsupported() => Ok(None),
        Err(failure) => Err(failure),
    }
}

#[cfg(target_os = "linux")]
mod linux {
    use super::{Attributes, GET_ATTRIBUTES, GET_FLAGS, SET_ATTRIBUTES, SET_FLAGS};
    use super::{Failure, Outcome};

    // linux/fs.h. The first two are declared with a long, though the kernel moves an int.
    const FS_IOC_GETFLAGS: u64 = 0x8000_6601 | ((size_of::<libc::c_long>() as u64) << 16);
    const FS_IOC_SETFLAGS: u64 = 0x4000_6602 | ((size_of::<libc::c_long>() as u64) << 16);
    const FS_IOC_FSGETXATTR: u64 = 0x8000_581f | ((size_of::<Attributes>() as u64) << 16);
    const FS_IOC_FSSETXATTR: u64 = 0x4000_5820 | ((size_of::<Attributes>() as u64) << 16);

    pub fn flags(fd: i32) -> Outcome<libc::c_int> {
        // A long, in case a kernel writes as much as the request declares.
        let mut value: [libc::c_int; 2] = [0; 2];
        // SAFETY: the request writes an int, at most a long; both fit.
        done(
            unsafe { libc::ioctl(fd, FS_IOC_GETFLAGS as _, value.as_mut_ptr()) },
            GET_FLAGS,
        )?;
        Ok(value[0])
    }

    pub fn set_flags(fd: i32, flags: libc::c_int) -> Outcome<()> {
        let value = [flags, 0];
        // SAFETY: the request reads an int, at most a long.
        done(
            unsafe { libc::ioctl(fd, FS_IOC_SETFLAGS as _, value.as_ptr()) },
            SET_FLAGS,
        )
    }

    pub fn attributes(fd: i32) -> Outcome<Attributes> {
        let mut value = Attributes::default();
        // SAFETY: the request writes one structure, whose size is part of its number.
        done(
            unsafe { libc::ioctl(fd, FS_IOC_FSGETXATTR as _, &raw mut value) },
            GET_ATTRIBUTES,
        )?;
        Ok(value)
    }

    pub fn set_attributes(fd: i32, value: &Attributes) -> Outcome<()> {
        // SAFETY: the request reads one structure.
        done(
            unsafe { libc::ioctl(fd, FS_IOC_FSSETXATTR as _, &raw const *value) },
            SET_ATTRIBUTES,
        )
    }

    fn done(result: libc::c_int, call: &'static str) -> Outcome<()> {
        match result {
            -1 => Err(Failure::last(call)),
            _ => Ok(()),
        }
    }
}

#[cfg(not(target_os = "linux"))]
mod linux {
    use super::{Attributes, GET_ATTRIBUTES, GET_FLAGS, SET_ATTRIBUTES, SET_FLAGS};
    use super::{Failure, Outcome};

    pub fn flags(_fd: i32) -> Outcome<libc::c_int> {
        Err(Failure::new(libc::ENOTSUP, GET_FLAGS))
    }

    pub fn set_flags(_fd: i32, _flags: libc::c_int) -> Outcome<()> {
        Err(Failure::new(libc::ENOTSUP, SET_FLAGS))
    }

    pub fn attributes(_fd: i32) -> Outcome<Attributes> {
        Err(Failure::new(libc::ENOTSUP, GET_ATTRIBUTES))
    }

    pub fn set_attributes(_fd: i32, _value: &Attributes) -> Outcome<()> {
        Err(Failure::new(libc::ENOTSUP, SET_ATTRIBUTES))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scratch::Scratch;

    #[test]
    fn the_structure_is_that_of_the_kernel() {
        assert_eq!(size_of::<Attributes>(), 28);
    }

    // What the file system below is, nobody knows here: what holds on all of them is tested.
    #[test]
    fn a_switch_works_or_is_refused_as_unsupported() {
        let file = Scratch::new();
        let off = set_no_cow(file.fd()).unwrap();
        assert_eq!(set_no_cow(file.fd()), Ok(off));
        assert_eq!(extent_size_hint(file.fd()), Ok(0));
        assert_eq!(set_extent_size_hint(file.fd(), 0), Ok(()));
        match set_extent_size_hint(file.fd(), 1 << 20) {
            Ok(()) => assert_eq!(extent_size_hint(file.fd()), Ok(1 << 20)),
            Err(failure) => {
                assert!(failure.is_unsupported(), "{failure}");
                assert_eq!(extent_size_hint(file.fd()), Ok(0));
            }
        }
    }

    #[test]
    fn failures_are_numbers() {
        let file = Scratch::new();
        assert_eq!(
            set_extent_size_hint(file.fd(), 1 << 32),
            Err(Failure::new(libc::EINVAL, SET_ATTRIBUTES))
        );
        let closed = Failure::new(libc::EBADF, "fcntl");
        assert_eq!(set_no_cow(-1), Err(closed));
        assert_eq!(extent_size_hint(-1), Err(closed));
        assert_eq!(set_extent_size_hint(-1, 4096), Err(closed));
    }
}
