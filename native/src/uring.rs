//! The operations of `workload.rs` on an io_uring, so that a deep queue needs no threads. A synced write is two linked
//! entries: its latency ends when the fdatasync is done.

use crate::failure::{Failure, Outcome};
use crate::workload::{Engine, How, Kind, Noise, Operation, Report, Timing, since};
use io_uring::{IoUring, opcode, squeue, types};
use std::time::Instant;

/// What a request in flight is at.
struct Slot {
    noise: Noise,
    index: usize,
    begin: u64,
    /// Completions that are to come.
    awaited: u8,
}

/// Runs the operations; the inner error is the errno for which the kernel gives no ring, or EOPNOTSUPP for kinds that
/// are not done on one.
pub fn run(fd: i32, operations: &[Operation], how: How) -> Outcome<Result<Report, i32>> {
    if operations.iter().any(|operation| !operation.moves_data()) {
        return Ok(Err(libc::EOPNOTSUPP));
    }
    let depth = how.depth.min(operations.len()).max(1);
    let entries = u32::try_from(depth * 2).unwrap_or(512).next_power_of_two();
    let mut ring = match IoUring::new(entries) {
        Ok(ring) => ring,
        Err(error) => return Ok(Err(error.raw_os_error().unwrap_or(libc::ENOSYS))),
    };
    let mut slots = Vec::with_capacity(depth);
    for slot in 0..depth {
        let noise = Noise::new(operations, how.seed, slot)?;
        slots.push(Slot {
            noise,
            index: 0,
            begin: 0,
            awaited: 0,
        });
    }
    let mut run = Run {
        fd,
        operations,
        start: Instant::now(),
        timings: vec![Timing::default(); operations.len()],
        slots,
        failure: None,
    };
    let begun = match run.all(&mut ring, how.limit) {
        Ok(begun) => begun,
        Err(failure) => {
            // The kernel may still write to the buffers: they are given up rather than freed.
            std::mem::forget(std::mem::take(&mut run.slots));
            return Err(failure);
        }
    };
    if let Some(failure) = run.failure {
        return Err(failure);
    }
    let elapsed = since(run.start);
    run.timings.truncate(begun);
    Ok(Ok(Report {
        engine: Engine::Uring,
        refused: 0,
        elapsed,
        timings: run.timings,
    }))
}

struct Run<'a> {
    fd: i32,
    operations: &'a [Operation],
    start: Instant,
    timings: Vec<Timing>,
    slots: Vec<Slot>,
    failure: Option<Failure>,
}

impl Run<'_> {
    /// Returns how many operations were begun, all of which are done then. Fails only when the ring itself does.
    fn all(&mut self, ring: &mut IoUring, limit: u64) -> Outcome<usize> {
        let mut idle: Vec<usize> = (0..self.slots.len()).rev().collect();
        let mut next = 0;
        let mut in_flight = 0;
        loop {
            while self.failure.is_none()
                && next < self.operations.len()
                && (limit == 0 || since(self.start) < limit)
                && let Some(slot) = idle.pop()
            {
                self.send(ring, slot, next)?;
                next += 1;
                in_flight += 1;
            }
            if in_flight == 0 {
                return Ok(next);
            }
            while let Err(error) = ring.submit_and_wait(1) {
                if error.raw_os_error() != Some(libc::EINTR) {
                    let errno = error.raw_os_error().unwrap_or(libc::EIO);
                    return Err(Failure::new(errno, "io_uring_enter"));
                }
            }
            let now = since(self.start);
            for entry in ring.completion() {
                let slot = (entry.user_data() >> 1) as usize;
                let is_sync = entry.user_data() & 1 == 1;
                if self.settle(slot, is_sync, entry.result(), now) {
                    idle.push(slot);
                    in_flight -= 1;
                }
            }
        }
    }

    fn send(&mut self, ring: &mut IoUring, place: usize, index: usize) -> Outcome<()> {
        let Some(operation) = self.operations.get(index) else {
            return Ok(());
        };
        let fd = types::Fd(self.fd);
        let Some(slot) = self.slots.get_mut(place) else {
            return Ok(());
        };
        if operation.kind != Kind::Read {
            slot.noise.stamp(index);
        }
        let memory = slot.noise.as_mut_ptr();
        let length = operation.length as u32;
        let tag = (place as u64) << 1;
        let main = match operation.kind {
            Kind::Read => opcode::Read::new(fd, memory, length)
                .offset(operation.offset)
                .build(),
            _ => opcode::Write::new(fd, memory, length)
                .offset(operation.offset)
                .build(),
        }
        .user_data(tag);
        slot.index = index;
        slot.begin = since(self.start);
        let mut queue = ring.submission();
        let full = |_| Failure::new(libc::EBUSY, "io_uring_enter");
        // SAFETY: the memory lives in the slot until the completion was seen; the descriptor is the caller's.
        unsafe {
            if operation.kind == Kind::WriteSync {
                let sync = opcode::Fsync::new(fd)
                    .flags(types::FsyncFlags::DATASYNC)
                    .build()
                    .user_data(tag | 1);
                slot.awaited = 2;
                queue
                    .push_multiple(&[main.flags(squeue::Flags::IO_LINK), sync])
                    .map_err(full)
            } else {
                slot.awaited = 1;
                queue.push(&main).map_err(full)
            }
        }
    }

    /// Takes one completion; whether its slot is idle now.
    fn settle(&mut self, place: usize, is_sync: bool, result: i32, now: u64) -> bool {
        let Some(slot) = self.slots.get_mut(place) else {
            return false;
        };
        slot.awaited -= 1;
        let operation = self.operations.get(slot.index);
        let call = match (is_sync, operation.map(|operation| operation.kind)) {
            (true, _) => "fdatasync",
            (_, Some(Kind::Read)) => "pread",
            _ => "pwrite",
        };
        let wanted = operation.map_or(0, |operation| operation.length as i32);
        // After a failed write its fdatasync is cancelled: the write says why.
        if result < 0 && result != -libc::ECANCELED {
            self.failure.get_or_insert(Failure::new(-result, call));
        } else if !is_sync && result != wanted {
            self.failure.get_or_insert(Failure::new(libc::EIO, call));
        }
        if slot.awaited > 0 {
            return false;
        }
        if let Some(timing) = self.timings.get_mut(slot.index) {
            *timing = Timing {
                latency: now - slot.begin,
                finish: now,
            };
        }
        true
    }
}
