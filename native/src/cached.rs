//! Reads of what the page cache holds already, which never wait for a device or a server.

use crate::os;

/// Fills the start of `into` from `offset` on, as far as the page cache holds it: the bytes, which are 0 at the end of
/// the file. `None` where nothing can be had without waiting, or where the platform or the file system cannot tell.
#[cfg(target_os = "linux")]
pub fn read(fd: i32, into: &mut [u8], offset: u64) -> Option<usize> {
    let at = os::off_t::try_from(offset).ok()?;
    let part = libc::iovec {
        iov_base: into.as_mut_ptr().cast(),
        iov_len: into.len(),
    };
    // SAFETY: the vector describes memory that is borrowed for the call.
    let count = unsafe { os::preadv2(fd, &raw const part, 1, at, libc::RWF_NOWAIT) };
    usize::try_from(count).ok()
}

#[cfg(not(target_os = "linux"))]
pub fn read(_fd: i32, _into: &mut [u8], _offset: u64) -> Option<usize> {
    None
}

#[cfg(test)]
mod tests {
    use super::read;
    use crate::scratch::Scratch;

    #[test]
    fn reads_what_was_just_written_and_stops_at_the_end() {
        let file = Scratch::filled(5000, 7);
        let mut into = [0_u8; 6000];
        assert_eq!(read(file.fd(), &mut into[..4096], 100), Some(4096));
        assert!(into[..4096].iter().all(|byte| *byte == 7));
        assert_eq!(into[4096], 0);
        assert_eq!(read(file.fd(), &mut into, 4999), Some(1));
        assert_eq!(read(file.fd(), &mut into, 5000), Some(0));
    }

    #[test]
    fn refuses_without_waiting_what_is_no_file() {
        assert_eq!(read(-1, &mut [0], 0), None);
        let file = Scratch::new();
        assert_eq!(read(file.fd(), &mut [0], u64::MAX), None);
    }
}
