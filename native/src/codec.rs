//! zstd frames of a compressed cluster.

use std::cell::RefCell;
use zstd_safe::{CCtx, DCtx, compress_bound, find_frame_compressed_size};

/// Largest window that a frame may declare: what libzstd, and so QEMU, accepts unless told otherwise. It costs nothing
/// here, since a frame is decoded straight into its place and the output is its own window.
pub const MAX_WINDOW: u64 = 1 << 27;

/// What is wrong with a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Damage {
    /// A frame, or the whole source, ends before `into` is full.
    Short,
    /// A frame decodes past the end of `into`, or is damaged; libzstd says which.
    Frame(&'static str),
    /// A frame declares a window over [`MAX_WINDOW`].
    Window,
}

impl Damage {
    pub fn reason(self) -> &'static str {
        match self {
            Self::Short => "the frames end before the output is full",
            Self::Frame(reason) => reason,
            Self::Window => "a frame declares a window over 128 MiB",
        }
    }
}

thread_local! {
    // About 100 KiB, kept for the next cluster that the thread decodes.
    static CONTEXT: RefCell<Option<DCtx<'static>>> = const { RefCell::new(None) };
    // A megabyte or a few, by level and cluster size.
    static ENCODER: RefCell<Option<CCtx<'static>>> = const { RefCell::new(None) };
}

/// Decodes frame after frame until `into` is full. Skippable frames are passed over; what follows is not looked at.
pub fn decompress(source: &[u8], into: &mut [u8]) -> Result<(), Damage> {
    CONTEXT.with_borrow_mut(|slot| {
        if slot.is_none() {
            *slot = DCtx::try_create();
        }
        let context = slot.as_mut().ok_or(Damage::Frame("out of memory"))?;
        let mut rest = source;
        let mut filled = 0;
        while filled < into.len() {
            if rest.is_empty() {
                return Err(Damage::Short);
            }
            let length = find_frame_compressed_size(rest).map_err(reason)?;
            // An empty frame is not possible, but a loop without progress must not be either.
            if length == 0 || length > rest.len() {
                return Err(Damage::Short);
            }
            let (frame, after) = rest.split_at(length);
            rest = after;
            if is_skippable(frame) {
                continue;
            }
            if window(frame) > MAX_WINDOW {
                return Err(Damage::Window);
            }
            filled += context
                .decompress(&mut into[filled..], frame)
                .map_err(reason)?;
        }
        Ok(())
    })
}

fn reason(code: usize) -> Damage {
    Damage::Frame(zstd_safe::get_error_name(code))
}

fn is_skippable(frame: &[u8]) -> bool {
    matches!(frame, [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..])
}

/// The window that a frame header declares (RFC 8878, 3.1.1.1.2); 0 where the frame is its own window.
fn window(frame: &[u8]) -> u64 {
    match frame {
        [_, _, _, _, flags, descriptor, ..] if flags & 0x20 == 0 => {
            let base = 1u64 << (10 + (descriptor >> 3));
            base + base / 8 * u64::from(descriptor & 7)
        }
        _ => 0,
    }
}

/// One frame with the content size and no checksum; `None` where it would have `limit` bytes or more.
pub fn compress(
    source: &[u8],
    level: i32,
    limit: usize,
) -> Result<Option<Vec<u8>>, std::collections::TryReserveError> {
    // Room for the worst case, so that whether a frame fits depends on its length and not on what the encoder needs
    // on the way there.
    let mut frame = Vec::new();
    let bound = compress_bound(source.len());
    frame.try_reserve_exact(bound)?;
    frame.resize(bound, 0);
    let done = ENCODER.with_borrow_mut(|slot| {
        if slot.is_none() {
            *slot = CCtx::try_create();
        }
        let context = slot.as_mut()?;
        context.compress(&mut frame[..], source, level).ok()
    });
    Ok(match done {
        Some(length) if length < limit => {
            frame.truncate(length);
            frame.shrink_to_fit();
            Some(frame)
        }
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(data: &[u8]) -> Vec<u8> {
        let mut out = vec![0; zstd_safe::compress_bound(data.len())];
        let length = zstd_safe::compress(&mut out[..], data, 3).unwrap();
        out.truncate(length);
        out
    }

    fn text(length: usize) -> Vec<u8> {
        (0..length)
            .map(|index| b"spindle and thread "[index * index % 19])
            .collect()
    }

    const SKIPPABLE: &[u8] = &[0x53, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 1, 2, 3];

    #[test]
    fn frames_follow_one_another() {
        let data = text(10_000);
        let source = [
            SKIPPABLE,
            &frame(&data[..4000]),
            SKIPPABLE,
            &frame(&data[4000..]),
            b"junk",
        ]
        .concat();
        let mut into = vec![0; data.len()];
        assert_eq!(decompress(&source, &mut into), Ok(()));
        assert_eq!(into, data);
    }

    #[test]
    fn a_frame_has_its_size_and_no_checksum_and_fits_or_is_none() {
        let data = text(65536);
        let made = compress(&data, 3, 65536).unwrap().unwrap();
        assert_eq!(made[..7], [0x28, 0xb5, 0x2f, 0xfd, 0x60, 0, 0xff]);
        let mut into = vec![0; data.len()];
        assert_eq!(decompress(&made, &mut into), Ok(()));
        assert_eq!(into, data);
        assert_eq!(compress(&data, 3, made.len()).unwrap(), None);
        assert_eq!(
            compress(&data, 3, made.len() + 1).unwrap().as_ref(),
            Some(&made)
        );
        assert_eq!(compress(b"abc", 3, 3).unwrap(), None);
        assert_eq!(compress(b"abc", 3, 0).unwrap(), None);
    }

    #[test]
    fn short_and_long_output_is_damage() {
        let data = text(5000);
        let source = frame(&data);
        assert_eq!(decompress(&source, &mut vec![0; 5001]), Err(Damage::Short));
        assert!(matches!(
            decompress(&source, &mut vec![0; 4999]),
            Err(Damage::Frame(_))
        ));
        for cut in 0..source.len() {
            assert!(
                decompress(&source[..cut], &mut vec![0; 5000]).is_err(),
                "{cut}"
            );
        }
        assert_eq!(decompress(b"", &mut []), Ok(()));
        assert_eq!(decompress(SKIPPABLE, &mut [0]), Err(Damage::Short));
        assert!(decompress(b"not zstd at all", &mut [0; 16]).is_err());
    }

    #[test]
    fn a_huge_window_is_refused_before_anything_is_allocated() {
        // An RLE block of 16 bytes in a frame with windows beyond libzstd, over 128 MiB, and of 128 MiB.
        let with = |descriptor: u8| [0x28, 0xb5, 0x2f, 0xfd, 0, descriptor, 0x83, 0, 0, 0x41];
        assert!(decompress(&with(0xff), &mut [0; 16]).is_err());
        assert_eq!(
            decompress(&with((17 << 3) + 1), &mut [0; 16]),
            Err(Damage::Window)
        );
        let mut into = [0; 16];
        assert_eq!(decompress(&with(17 << 3), &mut into), Ok(()));
        assert_eq!(into, [0x41; 16]);
    }
}
