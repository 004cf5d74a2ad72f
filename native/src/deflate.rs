//! Raw deflate streams of a compressed cluster.

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};
use libdeflater::Decompressor;
use std::cell::RefCell;

/// log2 of the farthest distance that a stream uses: a reader of qcow2 need not have a larger window.
const WINDOW_BITS: u8 = 12;

/// Levels of zlib.
pub const LEVELS: std::ops::RangeInclusive<u32> = 0..=9;

thread_local! {
    // What a thread needs for the next cluster as for this one: 30 KiB, 50 KiB and 300 KiB or so.
    static FAST: RefCell<Option<Decompressor>> = const { RefCell::new(None) };
    static PATIENT: RefCell<Option<Decompress>> = const { RefCell::new(None) };
    static ENCODER: RefCell<Option<(u32, Compress)>> = const { RefCell::new(None) };
}

/// Fills `into`. What follows the stream is not looked at; a stream may go on past `into`, and `source` may end anywhere
/// after enough has come out. The error is the reason, in words.
pub fn inflate(source: &[u8], into: &mut [u8]) -> Result<(), String> {
    if into.is_empty() {
        return Ok(());
    }
    let whole = FAST.with_borrow_mut(|slot| {
        let decoder = slot.get_or_insert_with(Decompressor::new);
        decoder.deflate_decompress(source, into)
    });
    match whole {
        Ok(length) if length == into.len() => Ok(()),
        Ok(length) => Err(short(length, into.len())),
        // It takes whole streams only; the other goes as far as is asked.
        Err(_) => patient(source, into),
    }
}

fn patient(source: &[u8], into: &mut [u8]) -> Result<(), String> {
    PATIENT.with_borrow_mut(|slot| {
        let decoder = slot.get_or_insert_with(|| Decompress::new(false));
        decoder.reset(false);
        let status = decoder.decompress(source, into, FlushDecompress::None);
        let filled = usize::try_from(decoder.total_out()).unwrap_or(0);
        if filled == into.len() {
            return Ok(());
        }
        Err(match status {
            Err(damage) => damage.message().unwrap_or("damaged stream").to_owned(),
            Ok(_) => short(filled, into.len()),
        })
    })
}

fn short(filled: usize, wanted: usize) -> String {
    format!("the stream ends after {filled} of {wanted} bytes")
}

/// A stream of which no distance passes 4096; `None` where it would have `limit` bytes or more, or where the bytes look
/// so random that trying is not worth the time.
pub fn deflate(source: &[u8], level: u32, limit: usize) -> Option<Vec<u8>> {
    if limit <= 2 || (level > 0 && limit <= source.len() && looks_random(source)) {
        return None;
    }
    ENCODER.with_borrow_mut(|slot| {
        let (_, encoder) = match slot {
            Some((kept, encoder)) if *kept == level => {
                encoder.reset();
                slot.as_mut()?
            }
            _ => slot.insert((
                level,
                Compress::new_with_window_bits(Compression::new(level), false, WINDOW_BITS),
            )),
        };
        // Some more, so that whether a stream fits depends on its length only.
        let mut stream = vec![0; limit.saturating_add(SPARE)];
        let end = encoder.compress(source, &mut stream, FlushCompress::Finish);
        if !matches!(end, Ok(Status::StreamEnd)) {
            return None;
        }
        stream.truncate(usize::try_from(encoder.total_out()).ok()?);
        stream.shrink_to_fit();
        (stream.len() < limit).then_some(stream)
    })
}

/// What an encoder may need beyond a stream while it makes it.
const SPARE: usize = 64;

/// Least that is worth a look: of less the spread of values says little.
const SAMPLE: usize = 16 * 1024;

/// Whether all values are about as frequent as in noise, and few groups of four bytes came before within reach.
fn looks_random(bytes: &[u8]) -> bool {
    if bytes.len() < SAMPLE {
        return false;
    }
    let mut counts = [[0u32; 256]; 4];
    for group in bytes.chunks_exact(4) {
        for (count, byte) in counts.iter_mut().zip(group) {
            count[usize::from(*byte)] += 1;
        }
    }
    // Noise: chi-squared with 255 degrees of freedom, which passes 400 about never.
    let expected = bytes.len() as f64 / 256.0;
    let spread: f64 = (0..256)
        .map(|value| {
            let count: u32 = counts.iter().map(|part| part[value]).sum();
            let off = f64::from(count) - expected;
            off * off / expected
        })
        .sum();
    spread < 400.0 && repeats(bytes) < bytes.len() / 256
}

/// How many groups of four bytes, of those looked at, also stand shortly before.
fn repeats(bytes: &[u8]) -> usize {
    const SLOTS: usize = 4096;
    let mut last = [0u32; SLOTS];
    let mut found = 0;
    for start in 0..bytes.len() - 3 {
        let group = u32::from_le_bytes([
            bytes[start],
            bytes[start + 1],
            bytes[start + 2],
            bytes[start + 3],
        ]);
        let slot = &mut last[(group.wrapping_mul(0x9e37_79b1) >> 20) as usize];
        found += usize::from(*slot == group);
        *slot = group;
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(length: usize) -> Vec<u8> {
        (0..length)
            .map(|index| b"spindle and thread "[index * index % 19])
            .collect()
    }

    fn noise(length: usize) -> Vec<u8> {
        let mut state = 0x2545_f491_4f6c_dd1d_u64;
        (0..length)
            .map(|_| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                (state >> 32) as u8
            })
            .collect()
    }

    #[test]
    fn comes_back() {
        for length in [1, 100, 4096, 65536, 1 << 21] {
            for level in LEVELS {
                let data = text(length);
                let stream = deflate(&data, level, length * 2 + 100).unwrap();
                let mut into = vec![0; length];
                assert_eq!(inflate(&stream, &mut into), Ok(()));
                assert_eq!(into, data);
            }
        }
    }

    #[test]
    fn fits_or_is_none() {
        let data = text(65536);
        let stream = deflate(&data, 6, 65536).unwrap();
        assert_eq!(deflate(&data, 6, stream.len()), None);
        assert_eq!(deflate(&data, 6, stream.len() + 1), Some(stream));
        assert_eq!(deflate(&noise(65536), 6, 65536), None);
        assert_eq!(deflate(&data, 6, 0), None);
    }

    #[test]
    fn noise_is_known_and_what_only_looks_like_it_is_not() {
        assert!(looks_random(&noise(65536)));
        assert!(!looks_random(&text(65536)));
        // Noise that stands there twice, within reach, is worth a stream.
        let twice = noise(2048).repeat(32);
        assert!(!looks_random(&twice));
        assert!(deflate(&twice, 6, 65536).is_some_and(|stream| stream.len() < 16384));
    }

    #[test]
    fn goes_as_far_as_is_asked() {
        let data = text(65536);
        let mut stream = deflate(&data, 6, 65536).unwrap();
        for length in [1, 100, 4096, 65535] {
            let mut into = vec![0; length];
            assert_eq!(inflate(&stream, &mut into), Ok(()));
            assert_eq!(into, data[..length]);
        }
        assert!(inflate(&stream, &mut vec![0; 65537]).is_err());
        let half = stream.len() / 2;
        assert!(inflate(&stream[..half], &mut vec![0; 65536]).is_err());
        stream.extend([0xff; 100]);
        assert_eq!(inflate(&stream, &mut vec![0; 65536]), Ok(()));
        assert!(inflate(b"", &mut [0]).is_err());
        assert!(inflate(&[0xff; 512], &mut [0; 512]).is_err());
    }
}
