//! Timed requests: a list of operations on a descriptor, so many in flight, each with its latency. Nothing of this
//! waits for JavaScript. io_uring where the kernel lets us (`uring.rs`), else threads that make blocking calls.

use crate::buffer::Aligned;
use crate::failure::{Failure, Outcome, end_of};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Instant;

/// What one operation does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Read,
    Write,
    /// A write, and then fdatasync: done when both are.
    WriteSync,
    /// A hole is punched.
    Punch,
    /// fdatasync alone; offset and length mean nothing.
    Sync,
}

/// One request.
#[derive(Debug, Clone, Copy)]
pub struct Operation {
    pub offset: u64,
    pub length: usize,
    pub kind: Kind,
}

/// Largest length of one request.
const MOST: u64 = 64 << 20;

/// Most requests in flight.
const DEEPEST: usize = 256;

impl Operation {
    /// EINVAL for a kind that is none or a length that is too large, EFBIG for a range past what files hold.
    pub fn new(offset: u64, length: u64, kind: u64) -> Outcome<Self> {
        const CALL: &str = "runWorkload";
        let kind = match kind {
            0 => Kind::Read,
            1 => Kind::Write,
            2 => Kind::WriteSync,
            3 => Kind::Punch,
            4 => Kind::Sync,
            _ => return Err(Failure::new(libc::EINVAL, CALL)),
        };
        end_of(offset, length, CALL)?;
        if kind != Kind::Punch && length > MOST {
            return Err(Failure::new(libc::EINVAL, CALL));
        }
        let length = usize::try_from(length).map_err(|_| Failure::new(libc::EINVAL, CALL))?;
        Ok(Self {
            offset,
            length,
            kind,
        })
    }

    pub fn moves_data(&self) -> bool {
        matches!(self.kind, Kind::Read | Kind::Write | Kind::WriteSync)
    }
}

/// How a list of operations is run.
#[derive(Debug, Clone, Copy)]
pub struct How {
    pub depth: usize,
    /// Of the bytes that are written.
    pub seed: u64,
    /// Nanoseconds after which no further operation begins; 0: never.
    pub limit: u64,
    /// Use threads even where there is io_uring.
    pub threads: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Engine {
    Uring = 0,
    Threads = 1,
}

/// Nanoseconds: how long an operation took, and when it was done after the start of the run.
#[derive(Debug, Clone, Copy, Default)]
pub struct Timing {
    pub latency: u64,
    pub finish: u64,
}

/// What a run found. `timings` are those of the first operations of the list, all that were begun.
#[derive(Debug)]
pub struct Report {
    pub engine: Engine,
    /// The error number that kept us from io_uring; 0: none did.
    pub refused: i32,
    pub elapsed: u64,
    pub timings: Vec<Timing>,
}

/// Runs the operations in their order, `depth` at a time. The first failure ends the run when what is in flight is done.
/// EINVAL for a depth of 0 or over 256; EIO where a read or write was short.
pub fn run(fd: i32, operations: &[Operation], how: How) -> Outcome<Report> {
    if how.depth == 0 || how.depth > DEEPEST {
        return Err(Failure::new(libc::EINVAL, "runWorkload"));
    }
    #[cfg(target_os = "linux")]
    let refused = if how.threads {
        0
    } else {
        // Punching and syncing without data gain nothing from a ring, and not every kernel has them there.
        match crate::uring::run(fd, operations, how)? {
            Ok(report) => return Ok(report),
            Err(errno) => errno,
        }
    };
    #[cfg(not(target_os = "linux"))]
    let refused = libc::ENOSYS;
    on_threads(fd, operations, how, refused)
}

/// Memory for one request in flight, filled with noise that neither compresses nor repeats.
pub struct Noise {
    memory: Aligned,
    seed: u64,
}

impl Noise {
    pub fn new(operations: &[Operation], seed: u64, slot: usize) -> Outcome<Self> {
        let longest = operations
            .iter()
            .filter(|operation| operation.moves_data())
            .map(|operation| operation.length)
            .max()
            .unwrap_or(1)
            .max(1);
        let mut memory = Aligned::zeroed(longest.next_multiple_of(4096) as u64, 4096)?;
        let mut state = mix(seed ^ mix(slot as u64 + 1)) | 1;
        // SAFETY: the memory is ours, as long as it says, and aligned for u64.
        let words = unsafe {
            std::slice::from_raw_parts_mut(memory.as_mut_ptr().cast::<u64>(), memory.len() / 8)
        };
        for word in words {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            *word = state;
        }
        Ok(Self { memory, seed })
    }

    /// Makes the next data unlike any before: each 512 bytes begin with a mark of the operation.
    pub fn stamp(&mut self, index: usize) {
        let mark = mix(self.seed ^ (index as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let count = self.memory.len() / 512;
        for sector in 0..count {
            // SAFETY: within the memory, and aligned.
            unsafe {
                let at = self.memory.as_mut_ptr().add(sector * 512).cast::<u64>();
                *at = mix(mark ^ sector as u64);
            }
        }
    }

    pub fn as_mut_ptr(&mut self) -> *mut u8 {
        self.memory.as_mut_ptr()
    }
}

/// Bits of a number well mixed (the finalizer of splitmix64).
fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

/// Nanoseconds since `start`.
pub fn since(start: Instant) -> u64 {
    u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX)
}

type Done = Vec<(usize, Timing)>;

fn on_threads(fd: i32, operations: &[Operation], how: How, refused: i32) -> Outcome<Report> {
    let depth = how.depth.min(operations.len()).max(1);
    let mut buffers = Vec::new();
    for slot in 0..depth {
        buffers.push(Noise::new(operations, how.seed, slot)?);
    }
    let (next, stopped) = (AtomicUsize::new(0), AtomicBool::new(false));
    let start = Instant::now();
    let work = |mut noise: Noise| -> Outcome<Done> {
        let mut done = Vec::new();
        while !stopped.load(Ordering::Relaxed) && (how.limit == 0 || since(start) < how.limit) {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some(operation) = operations.get(index) else {
                break;
            };
            if matches!(operation.kind, Kind::Write | Kind::WriteSync) {
                noise.stamp(index);
            }
            let begin = since(start);
            if let Err(failure) = one(fd, operation, &mut noise) {
                stopped.store(true, Ordering::Relaxed);
                return Err(failure);
            }
            let finish = since(start);
            let latency = finish - begin;
            done.push((index, Timing { latency, finish }));
        }
        Ok(done)
    };
    let results: Vec<Outcome<Done>> = std::thread::scope(|scope| {
        let handles: Vec<_> = buffers
            .into_iter()
            .map(|noise| scope.spawn(|| work(noise)))
            .collect();
        handles
            .into_iter()
            .map(|handle| {
                let panicked = Failure::new(libc::EIO, "runWorkload");
                handle.join().unwrap_or(Err(panicked))
            })
            .collect()
    });
    let elapsed = since(start);
    let mut all = Vec::with_capacity(operations.len());
    for result in results {
        all.extend(result?);
    }
    all.sort_unstable_by_key(|(index, _)| *index);
    Ok(Report {
        engine: Engine::Threads,
        refused,
        elapsed,
        timings: all.into_iter().map(|(_, timing)| timing).collect(),
    })
}

fn one(fd: i32, operation: &Operation, noise: &mut Noise) -> Outcome<()> {
    let Operation {
        offset,
        length,
        kind,
    } = *operation;
    // Checked when the operation was made.
    let at = offset as libc::off_t;
    let again = |call: &'static str, act: &mut dyn FnMut() -> isize| loop {
        match act() {
            -1 => {
                let failure = Failure::last(call);
                if failure.errno != libc::EINTR {
                    return Err(failure);
                }
            }
            count => return Ok(count as usize),
        }
    };
    let memory = noise.as_mut_ptr();
    match kind {
        Kind::Read => {
            // SAFETY: the memory holds the longest operation.
            let count = again("pread", &mut || unsafe {
                libc::pread(fd, memory.cast(), length, at)
            })?;
            whole_of(count, length, "pread")
        }
        Kind::Write | Kind::WriteSync => {
            // SAFETY: as above.
            let count = again("pwrite", &mut || unsafe {
                libc::pwrite(fd, memory.cast(), length, at)
            })?;
            whole_of(count, length, "pwrite")?;
            if kind == Kind::WriteSync {
                sync(fd)?;
            }
            Ok(())
        }
        Kind::Punch => {
            crate::allocate::fallocate(fd, crate::allocate::Mode::Punch, offset, length as u64)
        }
        Kind::Sync => sync(fd),
    }
}

fn whole_of(count: usize, length: usize, call: &'static str) -> Outcome<()> {
    if count == length {
        Ok(())
    } else {
        Err(Failure::new(libc::EIO, call))
    }
}

fn sync(fd: i32) -> Outcome<()> {
    // SAFETY: no pointer is passed.
    #[cfg(target_os = "linux")]
    let result = unsafe { libc::fdatasync(fd) };
    #[cfg(not(target_os = "linux"))]
    let result = unsafe { libc::fsync(fd) };
    if result == 0 {
        Ok(())
    } else {
        Err(Failure::last("fdatasync"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scratch::Scratch;

    fn how(depth: usize, threads: bool) -> How {
        How {
            depth,
            seed: 7,
            limit: 0,
            threads,
        }
    }

    fn list(kind: u64, count: u64) -> Vec<Operation> {
        (0..count)
            .map(|index| Operation::new(index * 4096, 4096, kind).unwrap())
            .collect()
    }

    #[test]
    fn every_operation_is_done_and_timed() {
        for threads in [false, true] {
            for depth in [1, 3, 32] {
                for kind in [1, 2] {
                    let file = Scratch::new();
                    let report = run(file.fd(), &list(kind, 50), how(depth, threads)).unwrap();
                    assert_eq!(report.timings.len(), 50);
                    assert!(!threads || report.engine == Engine::Threads);
                    for timing in &report.timings {
                        assert!(timing.latency > 0 && timing.latency <= timing.finish);
                        assert!(timing.finish <= report.elapsed);
                    }
                    let bytes = file.bytes();
                    assert_eq!(bytes.len(), 50 * 4096);
                    let (blocks, _) = bytes.as_chunks::<4096>();
                    let mut sorted: Vec<_> = blocks.to_vec();
                    sorted.sort_unstable();
                    sorted.dedup();
                    assert_eq!(sorted.len(), 50, "no block is written twice");
                    run(file.fd(), &list(0, 50), how(depth, threads)).unwrap();
                }
            }
        }
    }

    #[test]
    fn a_short_read_and_a_bad_descriptor_fail() {
        for threads in [false, true] {
            let file = Scratch::new();
            let failure = run(file.fd(), &list(0, 4), how(2, threads)).unwrap_err();
            assert_eq!(failure.errno, libc::EIO);
            let failure = run(-1, &list(2, 4), how(2, threads)).unwrap_err();
            assert_eq!(failure.errno, libc::EBADF);
        }
    }

    #[test]
    fn a_limit_ends_the_run_with_what_was_begun() {
        for threads in [false, true] {
            let file = Scratch::new();
            let limited = How {
                limit: 1,
                ..how(4, threads)
            };
            let report = run(file.fd(), &list(1, 5000), limited).unwrap();
            assert!(report.timings.len() < 5000);
            assert_eq!(file.bytes().len(), report.timings.len() * 4096);
        }
    }

    #[test]
    fn bad_numbers_are_refused() {
        assert!(Operation::new(0, 4096, 9).is_err());
        assert!(Operation::new(0, MOST + 1, 0).is_err());
        assert!(Operation::new(i64::MAX as u64, 4096, 0).is_err());
        let file = Scratch::new();
        for depth in [0, 257] {
            assert!(run(file.fd(), &list(1, 1), how(depth, true)).is_err());
        }
    }
}
