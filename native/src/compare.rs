//! Whether ranges of two files hold the same, many in one call.

use crate::failure::{Outcome, end_of};
use crate::transfer::{READ, Source};
use crate::zero::is_zero;
use std::cell::RefCell;
use std::os::fd::RawFd;

/// Bytes of either side at a time: both stay in the processor's cache.
const STEP: usize = 128 << 10;

thread_local! {
    static BUFFERS: RefCell<(Vec<u8>, Vec<u8>)> = const { RefCell::new((Vec::new(), Vec::new())) };
}

/// What is held against what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sides {
    Both,
    /// The first file against zeroes.
    First,
    /// The second file against zeroes.
    Second,
}

/// A range of either file.
#[derive(Debug, Clone, Copy)]
pub struct Pair {
    pub first: u64,
    pub second: u64,
    pub length: u64,
    pub sides: Sides,
}

/// The first byte that differs, counted over the pairs one after the other. EIO from `pread` where a file ends early.
pub fn compare_runs(first: RawFd, second: RawFd, pairs: &[Pair]) -> Outcome<Option<u64>> {
    let (mut first, mut second) = (Source::new(first, false)?, Source::new(second, false)?);
    let mut before = 0;
    BUFFERS.with_borrow_mut(|(one, other)| {
        for pair in pairs {
            end_of(pair.first, pair.length, READ)?;
            end_of(pair.second, pair.length, READ)?;
            let mut done = 0;
            while done < pair.length {
                let length =
                    usize::try_from(pair.length - done).map_or(STEP, |rest| rest.min(STEP));
                let found = match pair.sides {
                    Sides::Both => difference(
                        first.fill(one, pair.first + done, length)?,
                        second.fill(other, pair.second + done, length)?,
                    ),
                    Sides::First => not_zero(first.fill(one, pair.first + done, length)?),
                    Sides::Second => not_zero(second.fill(other, pair.second + done, length)?),
                };
                if let Some(at) = found {
                    return Ok(Some(before + done + at as u64));
                }
                done += length as u64;
            }
            before += pair.length;
        }
        Ok(None)
    })
}

fn difference(one: &[u8], other: &[u8]) -> Option<usize> {
    if one == other {
        return None;
    }
    one.iter().zip(other).position(|(a, b)| a != b)
}

fn not_zero(bytes: &[u8]) -> Option<usize> {
    if is_zero(bytes) {
        return None;
    }
    bytes.iter().position(|&byte| byte != 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failure::Failure;
    use crate::scratch::Scratch;

    const SIZE: usize = 3 * STEP + 77;

    fn pair(first: u64, second: u64, length: u64, sides: Sides) -> Pair {
        Pair {
            first,
            second,
            length,
            sides,
        }
    }

    fn bytes() -> Vec<u8> {
        (0..SIZE).map(|at| (at / 7 % 251) as u8 + 1).collect()
    }

    #[test]
    fn finds_the_first_byte_that_differs_in_any_step() {
        let bytes = bytes();
        let one = Scratch::holding(&bytes);
        for at in [0, 1, STEP - 1, STEP, 2 * STEP + 5, SIZE - 1] {
            let mut changed = bytes.clone();
            changed[at] ^= 1;
            let other = Scratch::holding(&changed);
            let whole = pair(0, 0, SIZE as u64, Sides::Both);
            assert_eq!(
                compare_runs(one.fd(), other.fd(), &[whole]),
                Ok(Some(at as u64))
            );
            assert_eq!(compare_runs(one.fd(), one.fd(), &[whole]), Ok(None));
            // Counted over what comes before.
            let pairs = [
                pair(0, 0, at as u64, Sides::Both),
                pair(at as u64, at as u64, 1, Sides::Both),
            ];
            assert_eq!(
                compare_runs(one.fd(), other.fd(), &pairs),
                Ok(Some(at as u64))
            );
        }
    }

    #[test]
    fn holds_either_side_against_zeroes() {
        let mut zeroes = vec![0; SIZE];
        let empty = Scratch::holding(&zeroes);
        zeroes[STEP + 3] = 9;
        let nearly = Scratch::holding(&zeroes);
        let length = SIZE as u64;
        for (sides, found) in [(Sides::First, None), (Sides::Second, Some(STEP as u64 + 3))] {
            let pairs = [pair(0, 0, length, sides)];
            assert_eq!(compare_runs(empty.fd(), nearly.fd(), &pairs), Ok(found));
        }
        // What does not count is not read.
        assert_eq!(
            compare_runs(
                empty.fd(),
                nearly.fd(),
                &[pair(0, 9 << 40, length, Sides::First)]
            ),
            Ok(None)
        );
    }

    #[test]
    fn a_file_that_ends_early_is_an_error() {
        let one = Scratch::holding(&bytes());
        let end = Failure::new(libc::EIO, READ);
        for sides in [Sides::Both, Sides::First, Sides::Second] {
            let pairs = [pair(SIZE as u64 - 9, SIZE as u64 - 9, 10, sides)];
            assert_eq!(compare_runs(one.fd(), one.fd(), &pairs), Err(end));
        }
        assert!(compare_runs(-1, one.fd(), &[]).is_err());
    }
}
