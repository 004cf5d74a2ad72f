//! Many small requests to one file in one call: together on an io_uring, so that a device sees them all at once, or one
//! after the other.

use crate::failure::{Failure, Outcome, end_of};
use crate::transfer::{READ, WRITE, borrowed};
use std::os::fd::RawFd;
use std::os::unix::fs::FileExt;
use std::sync::{Mutex, PoisonError};

/// Whose turn it is to write to the page cache, by descriptor. Writers of one file wait for each other in the kernel too,
/// but there they may spin, and take the processor from who has work.
static TURNS: [Mutex<()>; 16] = [const { Mutex::new(()) }; 16];

/// What all requests of a batch do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    Read,
    Write,
}

impl Way {
    pub fn call(self) -> &'static str {
        match self {
            Self::Read => READ,
            Self::Write => WRITE,
        }
    }
}

/// What came of a batch: the numbers of the requests that were not done whole, for whatever reason.
pub type Left = Vec<u32>;

/// Why there is no answer.
pub enum Broken {
    /// Nothing was begun.
    Refused(Failure),
    /// The ring failed with requests in flight: the kernel may still use the memory, which must never be freed.
    Lost(Failure),
}

/// Checks offset, length of each request, and that all bytes together are those of `memory`.
fn check(requests: &[(u64, u64)], way: Way, memory: usize) -> Outcome<()> {
    let mut all: u64 = 0;
    for &(at, length) in requests {
        end_of(at, length, way.call())?;
        all = all.saturating_add(length);
    }
    if all == memory as u64 {
        Ok(())
    } else {
        Err(Failure::new(libc::EINVAL, way.call()))
    }
}

/// Does the requests (offset, length), whose bytes lie in `memory` one after the other. With `ring` on an io_uring, where
/// the kernel gives one.
pub fn run(
    fd: RawFd,
    way: Way,
    requests: &[(u64, u64)],
    memory: &mut [u8],
    ring: bool,
) -> Result<Left, Broken> {
    check(requests, way, memory.len()).map_err(Broken::Refused)?;
    #[cfg(target_os = "linux")]
    if ring
        && requests.len() > 1
        && let Some(left) = on_ring::run(fd, way, requests, memory).map_err(Broken::Lost)?
    {
        return Ok(left);
    }
    #[cfg(not(target_os = "linux"))]
    let _ = ring;
    in_order(fd, way, requests, memory).map_err(Broken::Refused)
}

fn in_order(fd: RawFd, way: Way, requests: &[(u64, u64)], mut memory: &mut [u8]) -> Outcome<Left> {
    let file = borrowed(fd)?;
    let mut left = Vec::new();
    let _turn = match way {
        Way::Write => TURNS.get(fd as usize % TURNS.len()),
        Way::Read => None,
    }
    .map(|turn| turn.lock().unwrap_or_else(PoisonError::into_inner));
    for (number, &(at, length)) in (0..).zip(requests) {
        let (bytes, rest) = memory.split_at_mut(length as usize);
        memory = rest;
        let done = match way {
            Way::Read => file.read_at(bytes, at),
            Way::Write => file.write_at(bytes, at),
        };
        if !done.is_ok_and(|count| count as u64 == length) {
            left.push(number);
        }
    }
    Ok(left)
}

#[cfg(target_os = "linux")]
mod on_ring {
    use super::{Left, Way};
    use crate::failure::{Failure, Outcome};
    use io_uring::{IoUring, opcode, types};
    use std::cell::RefCell;
    use std::os::fd::RawFd;

    const ENTRIES: usize = 64;

    enum Ring {
        Unasked,
        Ready(Box<IoUring>),
        /// The kernel gives none.
        None,
    }

    thread_local! {
        static RING: RefCell<Ring> = const { RefCell::new(Ring::Unasked) };
    }

    /// `None` where there is no ring, and nothing was begun.
    pub fn run(
        fd: RawFd,
        way: Way,
        requests: &[(u64, u64)],
        memory: &mut [u8],
    ) -> Outcome<Option<Left>> {
        RING.with_borrow_mut(|place| {
            if matches!(place, Ring::Unasked) {
                *place = IoUring::new(ENTRIES as u32)
                    .map_or(Ring::None, |ring| Ring::Ready(Box::new(ring)));
            }
            let Ring::Ready(ring) = place else {
                return Ok(None);
            };
            let found = rounds(ring, fd, way, requests, memory);
            if found.is_err() {
                *place = Ring::None;
            }
            found.map(Some)
        })
    }

    fn rounds(
        ring: &mut IoUring,
        fd: RawFd,
        way: Way,
        requests: &[(u64, u64)],
        mut memory: &mut [u8],
    ) -> Outcome<Left> {
        let mut left = Vec::new();
        for (round, part) in requests.chunks(ENTRIES).enumerate() {
            let length = part.iter().map(|&(_, length)| length as usize).sum();
            let (bytes, rest) = memory.split_at_mut(length);
            memory = rest;
            one_round(ring, fd, way, part, bytes, |number| {
                left.push((round * ENTRIES + number) as u32);
            })?;
        }
        left.sort_unstable();
        Ok(left)
    }

    /// Sends up to [`ENTRIES`] requests and waits until all have ended. Fails only when the ring itself does.
    fn one_round(
        ring: &mut IoUring,
        fd: RawFd,
        way: Way,
        part: &[(u64, u64)],
        bytes: &mut [u8],
        mut not_whole: impl FnMut(usize),
    ) -> Outcome<()> {
        const CALL: &str = "io_uring_enter";
        let fd = types::Fd(fd);
        let mut from = bytes.as_mut_ptr();
        {
            let mut queue = ring.submission();
            for (number, &(at, length)) in part.iter().enumerate() {
                let entry = match way {
                    Way::Read => opcode::Read::new(fd, from, length as u32)
                        .offset(at)
                        .build(),
                    Way::Write => opcode::Write::new(fd, from, length as u32)
                        .offset(at)
                        .build(),
                };
                // SAFETY: the memory outlives the call, which waits for all of them; on failure the caller gives it up.
                unsafe {
                    queue
                        .push(&entry.user_data(number as u64))
                        .map_err(|_| Failure::new(libc::EBUSY, CALL))?;
                    from = from.add(length as usize);
                }
            }
        }
        let mut awaited = part.len();
        while awaited > 0 {
            if let Err(error) = ring.submit_and_wait(awaited) {
                let errno = error.raw_os_error().unwrap_or(libc::EIO);
                // The kernel is short of something for a moment: what has ended makes room.
                if !matches!(errno, libc::EINTR | libc::EAGAIN | libc::EBUSY) {
                    return Err(Failure::new(errno, CALL));
                }
            }
            for entry in ring.completion() {
                let number = entry.user_data() as usize;
                let wanted = part.get(number).map_or(0, |&(_, length)| length);
                if i64::from(entry.result()) != wanted as i64 {
                    not_whole(number);
                }
                awaited -= 1;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::{Broken, Left, Way, run};
    use crate::scratch::Scratch;

    fn done(fd: i32, way: Way, requests: &[(u64, u64)], memory: &mut [u8], ring: bool) -> Left {
        run(fd, way, requests, memory, ring).unwrap_or_else(|_| panic!("no answer"))
    }

    #[test]
    fn writes_and_reads_each_at_its_place() {
        for ring in [false, true] {
            let file = Scratch::filled(100_000, 1);
            let requests: Vec<_> = (0..100_u64).rev().map(|i| (i * 1000 + 7, 1 + i)).collect();
            let length = requests.iter().map(|&(_, length)| length as usize).sum();
            let mut memory: Vec<u8> = (0..length).map(|i| i as u8).collect();
            let from = memory.clone();
            assert!(done(file.fd(), Way::Write, &requests, &mut memory, ring).is_empty());
            let bytes = file.bytes();
            assert_eq!(bytes.len(), 100_000);
            let mut at = 0;
            for &(offset, length) in &requests {
                let (offset, length) = (offset as usize, length as usize);
                assert_eq!(bytes[offset..offset + length], from[at..at + length]);
                assert_eq!(bytes[offset + length], 1);
                at += length;
            }
            memory.fill(0);
            assert!(done(file.fd(), Way::Read, &requests, &mut memory, ring).is_empty());
            assert_eq!(memory, from);
        }
    }

    #[test]
    fn names_those_that_are_not_whole() {
        for ring in [false, true] {
            let file = Scratch::filled(4096, 9);
            let mut memory = [0; 400];
            let requests = [(0, 100), (4000, 100), (5000, 100), (100, 100)];
            assert_eq!(
                done(file.fd(), Way::Read, &requests, &mut memory, ring),
                [1, 2]
            );
            assert_eq!(memory[..100], [9; 100]);
            assert_eq!(memory[300..], [9; 100]);
            let only = file.read_only();
            assert_eq!(
                done(only.fd(), Way::Write, &requests, &mut memory, ring),
                [0, 1, 2, 3]
            );
        }
    }

    #[test]
    fn refuses_memory_that_does_not_fit() {
        let file = Scratch::new();
        for (requests, length) in [(&[(0, 8), (8, 8)][..], 15), (&[(u64::MAX, 8)][..], 8)] {
            let found = run(file.fd(), Way::Write, requests, &mut vec![0; length], true);
            assert!(matches!(found, Err(Broken::Refused(_))));
        }
        assert!(file.bytes().is_empty());
    }
}
