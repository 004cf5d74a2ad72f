//! Zeroed memory at an aligned address, as O_DIRECT wants it.

use crate::failure::{Failure, Outcome};
use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ops::Deref;
use std::ptr::NonNull;

const CALL: &str = "alignedBuffer";

/// Largest buffer that is handed out: what Node's Buffer of this generation takes.
const MAX_SIZE: u64 = (1 << 32) - 1;

/// An owned, zeroed allocation.
#[derive(Debug)]
pub struct Aligned {
    start: NonNull<u8>,
    layout: Layout,
}

// SAFETY: the memory is owned, and only handed out under Rust's borrow rules.
unsafe impl Send for Aligned {}
unsafe impl Sync for Aligned {}

impl Aligned {
    /// `size` bytes, at least one, at a multiple of `alignment`, a power of two. EINVAL or ENOMEM.
    pub fn zeroed(size: u64, alignment: u64) -> Outcome<Self> {
        if size == 0 || size > MAX_SIZE {
            return Err(Failure::new(libc::EINVAL, CALL));
        }
        let layout = usize::try_from(alignment)
            .ok()
            .zip(usize::try_from(size).ok())
            .and_then(|(alignment, size)| Layout::from_size_align(size, alignment).ok())
            .ok_or(Failure::new(libc::EINVAL, CALL))?;
        // SAFETY: the size is not zero.
        let start = NonNull::new(unsafe { alloc_zeroed(layout) })
            .ok_or(Failure::new(libc::ENOMEM, CALL))?;
        Ok(Self { start, layout })
    }

    pub fn as_mut_ptr(&mut self) -> *mut u8 {
        self.start.as_ptr()
    }
}

impl Deref for Aligned {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        // SAFETY: `start` points to `size` initialised bytes that live as long as `self`.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.layout.size()) }
    }
}

impl Drop for Aligned {
    fn drop(&mut self) {
        // SAFETY: allocated in `zeroed` with this layout.
        unsafe { dealloc(self.start.as_ptr(), self.layout) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn aligned_and_zeroed() {
        for alignment in [1, 512, 4096, 1 << 21] {
            let buffer = Aligned::zeroed(10_000, alignment).unwrap();
            assert_eq!(buffer.as_ptr() as u64 % alignment, 0);
            assert_eq!(buffer.len(), 10_000);
            assert!(buffer.iter().all(|byte| *byte == 0));
        }
    }

    #[test]
    fn bad_numbers_fail() {
        for (size, alignment) in [
            (0, 512),
            (512, 0),
            (512, 3),
            (u64::MAX, 512),
            (512, u64::MAX),
            (512, 1 << 63),
        ] {
            assert!(
                Aligned::zeroed(size, alignment).is_err(),
                "{size} {alignment}"
            );
        }
    }
}
