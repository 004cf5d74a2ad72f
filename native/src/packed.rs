//! Compressed clusters, many in a call: decoded into a file, and encoded from one.

use crate::failure::{Failure, Outcome, end_of};
use crate::transfer::{READ, Source, WRITE, borrowed, put};
use crate::zero::is_zero;
use crate::{codec, deflate};
use std::cell::RefCell;
use std::fmt;
use std::os::fd::RawFd;

/// How clusters are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Packing {
    Deflate,
    Zstd,
}

/// Plain bytes, or a part of what a stream holds, and where it goes. Bytes.
#[derive(Debug, Clone, Copy)]
pub struct Piece {
    pub from: u64,
    pub to: u64,
    pub length: u64,
    /// Of the stream; 0: the bytes at `from` are plain.
    pub packed: u64,
    /// Of the decoded cluster, before the part.
    pub first: u64,
}

/// Why it ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trouble {
    System(Failure),
    Damage(String),
}

impl From<Failure> for Trouble {
    fn from(failure: Failure) -> Self {
        Self::System(failure)
    }
}

impl fmt::Display for Trouble {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::System(failure) => write!(out, "{failure}"),
            Self::Damage(reason) => write!(out, "BAD_COMPRESSED:{reason}"),
        }
    }
}

/// Plain bytes that are read before they are written.
const STEP: usize = 256 << 10;

#[derive(Default)]
struct Buffers {
    stream: Vec<u8>,
    cluster: Vec<u8>,
}

thread_local! {
    static BUFFERS: RefCell<Buffers> = RefCell::default();
}

/// Writes all pieces, one after the other, but for units of `skip` bytes of zeroes, counted from the start of each piece
/// (0: everything is written); the bytes that were written. `size` is that of a cluster. EINVAL for a part that passes
/// its cluster, EIO from `pread` where the source ends before a plain piece does.
pub fn expand(
    source: RawFd,
    target: RawFd,
    pieces: &[Piece],
    (packing, size): (Packing, usize),
    skip: usize,
) -> Result<u64, Trouble> {
    let (mut reader, target) = (Source::new(source, skip > 0)?, borrowed(target)?);
    let streams = borrowed(source)?;
    let step = if skip == 0 {
        STEP
    } else {
        STEP.div_ceil(skip) * skip
    };
    let mut written = 0;
    BUFFERS.with_borrow_mut(|Buffers { stream, cluster }| {
        for piece in pieces {
            end_of(piece.from, piece.length.max(piece.packed), READ)?;
            end_of(piece.to, piece.length, WRITE)?;
            if piece.packed == 0 {
                let mut done = 0;
                while done < piece.length {
                    let length =
                        usize::try_from(piece.length - done).map_or(step, |rest| rest.min(step));
                    let bytes = reader.fill(cluster, piece.from + done, length)?;
                    written += put(&target, bytes, piece.to + done, skip)?;
                    done += length as u64;
                }
                continue;
            }
            let (first, length) = part(piece, size)?;
            let packed = usize::try_from(piece.packed).unwrap_or(usize::MAX);
            if packed > MOST_STREAM {
                return Err(Failure::new(libc::EINVAL, READ).into());
            }
            stream.resize(packed, 0);
            // The sectors that hold a stream may pass the end of the file.
            let had = read_some(&streams, stream, piece.from)?;
            if cluster.len() < size {
                cluster.resize(size, 0);
            }
            let whole = &mut cluster[..size];
            decode(packing, &stream[..had], whole)?;
            written += put(&target, &whole[first..first + length], piece.to, skip)?;
        }
        Ok(written)
    })
}

/// A stream in the format has fewer sectors than this.
const MOST_STREAM: usize = 8 << 20;

fn part(piece: &Piece, size: usize) -> Outcome<(usize, usize)> {
    let bad = Failure::new(libc::EINVAL, WRITE);
    let first = usize::try_from(piece.first).map_err(|_| bad)?;
    let length = usize::try_from(piece.length).map_err(|_| bad)?;
    match first.checked_add(length) {
        Some(end) if end <= size => Ok((first, length)),
        _ => Err(bad),
    }
}

fn read_some(file: &std::fs::File, into: &mut [u8], at: u64) -> Outcome<usize> {
    use std::os::unix::fs::FileExt;
    let mut had = 0;
    while had < into.len() {
        match file.read_at(&mut into[had..], at + had as u64) {
            Ok(0) => break,
            Ok(count) => had += count,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => {
                return Err(Failure::new(
                    error.raw_os_error().unwrap_or(libc::EIO),
                    READ,
                ));
            }
        }
    }
    Ok(had)
}

fn decode(packing: Packing, stream: &[u8], into: &mut [u8]) -> Result<(), Trouble> {
    match packing {
        Packing::Deflate => deflate::inflate(stream, into).map_err(Trouble::Damage),
        Packing::Zstd => codec::decompress(stream, into)
            .map_err(|damage| Trouble::Damage(damage.reason().to_owned())),
    }
}

/// What became of a cluster, in the lengths that [`pack`] gives: all of it is zeroes.
const ZEROES: u32 = 0;

/// Compresses the clusters of ranges (offset, length; the last cluster of a range may be short, and has zeroes behind
/// it). The length of the stream of each, and after these (4 bytes each, least significant first) all streams, one after
/// the other. The length is 0 for a cluster of zeroes, and `size` for one that does not become smaller. ENOMEM.
pub fn pack(
    source: RawFd,
    ranges: &[(u64, u64)],
    (packing, size): (Packing, usize),
    level: u32,
) -> Outcome<Vec<u8>> {
    let mut source = Source::new(source, true)?;
    let most = u32::try_from(size).map_err(|_| Failure::new(libc::EINVAL, "pack"))?;
    let mut lengths = Vec::new();
    let mut streams: Vec<u8> = Vec::new();
    BUFFERS.with_borrow_mut(|Buffers { cluster, .. }| -> Outcome<()> {
        for &(at, length) in ranges {
            let end = end_of(at, length, READ)?;
            let mut here = at;
            while here < end {
                let part = usize::try_from(end - here).map_or(size, |rest| rest.min(size));
                source.fill(cluster, here, part)?;
                if cluster.len() < size {
                    cluster.resize(size, 0);
                }
                let whole = &mut cluster[..size];
                whole[part..].fill(0);
                lengths.push(if is_zero(whole) {
                    ZEROES
                } else {
                    encode(packing, whole, level)?.map_or(most, |stream| {
                        streams.extend_from_slice(&stream);
                        stream.len() as u32
                    })
                });
                here += part as u64;
            }
        }
        Ok(())
    })?;
    let mut packed = Vec::with_capacity(lengths.len() * 4 + streams.len());
    packed.extend(lengths.iter().flat_map(|length| length.to_le_bytes()));
    packed.extend_from_slice(&streams);
    Ok(packed)
}

fn encode(packing: Packing, cluster: &[u8], level: u32) -> Outcome<Option<Vec<u8>>> {
    match packing {
        Packing::Deflate => Ok(deflate::deflate(cluster, level, cluster.len())),
        Packing::Zstd => codec::compress(
            cluster,
            i32::try_from(level).unwrap_or(i32::MAX),
            cluster.len(),
        )
        .map_err(|_| Failure::new(libc::ENOMEM, "zstdCompress")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scratch::Scratch;

    const SIZE: usize = 65536;

    /// Text, zeroes, noise, and half a cluster of text.
    fn sample() -> Vec<u8> {
        let mut state = 0x2545_f491_4f6c_dd1d_u64;
        let mut bytes: Vec<u8> = (0..SIZE)
            .map(|index| b"spindle and thread "[index * index % 19])
            .collect();
        bytes.resize(2 * SIZE, 0);
        bytes.extend((0..SIZE).map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as u8
        }));
        bytes.extend_from_within(..SIZE / 2);
        bytes
    }

    fn file(bytes: &[u8]) -> Scratch {
        let scratch = Scratch::new();
        put(&borrowed(scratch.fd()).unwrap(), bytes, 0, 0).unwrap();
        scratch
    }

    #[test]
    fn what_is_packed_comes_out_again() {
        let bytes = sample();
        let source = file(&bytes);
        for (packing, level) in [(Packing::Deflate, 6), (Packing::Zstd, 3)] {
            let how = (packing, SIZE);
            let range = (0, bytes.len() as u64);
            let packed = pack(source.fd(), &[range], how, level).unwrap();
            let (heads, streams) = packed.split_at(16);
            let lengths: Vec<u32> = heads
                .chunks(4)
                .map(|head| u32::from_le_bytes(head.try_into().unwrap()))
                .collect();
            assert!(lengths[0] > 0 && lengths[0] < 65536);
            assert_eq!(lengths[1..3], [0, 65536]);
            assert_eq!((lengths[0] + lengths[3]) as usize, streams.len());

            // Sectors beyond the end of the file are asked for too.
            let (middle, target) = (file(streams), Scratch::new());
            let stream = |from: u32, packed: u32, to, first, length| Piece {
                from: from.into(),
                packed: u64::from(packed) + 512,
                to,
                first,
                length,
            };
            let pieces = [
                stream(0, lengths[0], 0, 0, 65536),
                stream(lengths[0], lengths[3], 100_000, 1000, 20_000),
            ];
            assert_eq!(
                expand(middle.fd(), target.fd(), &pieces, how, 0),
                Ok(85_536)
            );
            let written = target.bytes();
            assert!(written[..SIZE] == bytes[..SIZE]);
            assert!(written[100_000..] == bytes[1000..21_000]);
            // The last one was half a cluster.
            let tail = [stream(lengths[0], lengths[3], 0, 32768, 32768)];
            assert_eq!(
                expand(middle.fd(), target.fd(), &tail, how, 4096),
                Ok(0),
                "zeroes behind the end"
            );
        }
    }

    #[test]
    fn plain_pieces_are_copied() {
        let bytes = sample();
        let (source, target) = (file(&bytes), Scratch::new());
        let plain = Piece {
            from: 100,
            to: 7,
            length: 200_000,
            packed: 0,
            first: 0,
        };
        let how = (Packing::Zstd, SIZE);
        assert_eq!(
            expand(source.fd(), target.fd(), &[plain], how, 0),
            Ok(200_000)
        );
        assert!(target.bytes()[7..] == bytes[100..200_100]);
    }

    #[test]
    fn damage_and_nonsense_are_told() {
        let (source, target) = (Scratch::filled(5000, 0xff), Scratch::new());
        let piece = Piece {
            from: 0,
            to: 0,
            length: 65536,
            packed: 5000,
            first: 0,
        };
        let run =
            |piece: Piece, packing| expand(source.fd(), target.fd(), &[piece], (packing, SIZE), 0);
        for packing in [Packing::Deflate, Packing::Zstd] {
            assert!(matches!(run(piece, packing), Err(Trouble::Damage(_))));
            assert!(matches!(
                run(Piece { first: 1, ..piece }, packing),
                Err(Trouble::System(_))
            ));
            let large = Piece {
                packed: 1 << 40,
                ..piece
            };
            assert!(matches!(run(large, packing), Err(Trouble::System(_))));
        }
        assert!(expand(-1, target.fd(), &[], (Packing::Zstd, SIZE), 0).is_err());
        assert!(pack(source.fd(), &[(4000, 2000)], (Packing::Zstd, SIZE), 3).is_err());
    }
}
