//! What JavaScript sees. Numbers come as doubles and are checked here; blocking work goes to the thread pool. Failures
//! cross as `ERRNO:<number>:<call>`, damaged compressed data as `BAD_COMPRESSED:<reason>`.

use crate::failure::{Failure, Outcome, descriptor, whole};
use crate::{
    allocate, batch, buffer, cached, clone, codec, compare, deflate, device, flags, lock, packed,
    sparse, transfer, workload, zero,
};
use napi::bindgen_prelude::{
    AsyncTask, BufferSlice, Float64Array, ToNapiValue, TypeName, Uint8Array,
};
use napi::{Env, Error, Result, Task};
use napi_derive::napi;
use std::fmt::Display;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Work for the thread pool; its result is made a JavaScript value on the main thread.
pub struct Job<T>(Option<Box<dyn FnOnce() -> Result<T> + Send>>);

impl<T: ToNapiValue + TypeName + Send + 'static> Task for Job<T> {
    type Output = T;
    type JsValue = T;

    fn compute(&mut self) -> Result<T> {
        let work = self.0.take().ok_or_else(|| error("ERRNO:5:run twice"))?;
        // Nothing here panics by design; should it, Node must not be taken along.
        catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| Err(error("ERRNO:5:panic")))
    }

    fn resolve(&mut self, _env: Env, output: T) -> Result<T> {
        Ok(output)
    }
}

fn error(reason: impl Display) -> Error {
    Error::from_reason(reason.to_string())
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        error(failure)
    }
}

type Promise<T> = AsyncTask<Job<T>>;

fn job<T>(work: impl FnOnce() -> Outcome<T> + Send + 'static) -> Promise<T>
where
    T: ToNapiValue + TypeName + Send + 'static,
{
    AsyncTask::new(Job(Some(Box::new(move || work().map_err(error)))))
}

fn doubles(values: impl IntoIterator<Item = u64>) -> Float64Array {
    values
        .into_iter()
        .map(|value| value as f64)
        .collect::<Vec<_>>()
        .into()
}

/// Modes: 0 reserve, 1 reserve-keep-size, 2 punch, 3 zero-range.
#[napi]
pub fn fallocate(fd: f64, mode: f64, offset: f64, length: f64) -> Promise<()> {
    job(move || {
        const CALL: &str = "fallocate";
        let mode = allocate::Mode::from_number(mode)?;
        allocate::fallocate(
            descriptor(fd)?,
            mode,
            whole(offset, CALL)?,
            whole(length, CALL)?,
        )
    })
}

/// Resolves to the way (0 offload, 1 direct, 2 buffered) and the bytes written.
#[napi]
pub fn write_zeroes(fd: f64, offset: f64, length: f64) -> Promise<Float64Array> {
    job(move || {
        const CALL: &str = "pwrite";
        let report =
            zero::write_zeroes(descriptor(fd)?, whole(offset, CALL)?, whole(length, CALL)?)?;
        Ok(doubles([report.way as u64, report.written]))
    })
}

/// Resolves to start, end, start, end...
#[napi]
pub fn data_extents(fd: f64, offset: f64, length: f64, limit: f64) -> Promise<Float64Array> {
    job(move || {
        const CALL: &str = "lseek";
        let (offset, length, limit) = (
            whole(offset, CALL)?,
            whole(length, CALL)?,
            whole(limit, CALL)?,
        );
        Ok(doubles(sparse::data_runs(
            descriptor(fd)?,
            offset,
            length,
            limit,
        )?))
    })
}

/// Resolves to logical, physical, length, kind for each extent; bits of kind: 1 unwritten, 2 shared, 4 delayed,
/// 8 encoded.
#[napi]
pub fn fiemap(fd: f64, offset: f64, length: f64, limit: f64, sync: bool) -> Promise<Float64Array> {
    job(move || {
        const CALL: &str = "ioctl FIEMAP";
        let (offset, length, limit) = (
            whole(offset, CALL)?,
            whole(length, CALL)?,
            whole(limit, CALL)?,
        );
        let found = sparse::fiemap(descriptor(fd)?, offset, length, limit, sync)?;
        let bit = |flags: u32, mask: u32, bit: u64| if flags & mask == 0 { 0 } else { bit };
        Ok(doubles(found.iter().flat_map(|extent| {
            let kind = bit(extent.flags, sparse::UNWRITTEN, 1)
                | bit(extent.flags, sparse::SHARED, 2)
                | bit(extent.flags, sparse::DELAYED, 4)
                | bit(extent.flags, sparse::NOT_PLAIN, 8);
            [extent.logical, extent.physical, extent.length, kind]
        })))
    })
}

#[napi]
pub fn zero_units(bytes: &[u8], granularity: f64) -> Result<Uint8Array> {
    let granularity = usize::try_from(whole(granularity, "zeroUnits")?)
        .unwrap_or(usize::MAX)
        .max(1);
    Ok(zero::zero_units(bytes, granularity).into())
}

/// Runs are from, to, length, from...
#[napi]
pub fn clone_runs(source: f64, target: f64, runs: Float64Array) -> Result<Promise<()>> {
    const CALL: &str = "ioctl FICLONERANGE";
    let (source, target) = (descriptor(source)?, descriptor(target)?);
    let list = numbers(&runs, CALL)?;
    Ok(job(move || {
        clone::clone_runs(source, target, &runs_of(&list))
    }))
}

/// Runs are from, to, length, from... Resolves to the bytes written.
#[napi]
pub fn copy_runs(source: f64, target: f64, runs: Float64Array, skip: f64) -> Result<Promise<f64>> {
    const CALL: &str = "pread";
    let (source, target) = (descriptor(source)?, descriptor(target)?);
    let skip = usize::try_from(whole(skip, CALL)?).unwrap_or(usize::MAX);
    let list = numbers(&runs, CALL)?;
    Ok(job(move || {
        Ok(transfer::copy_runs(source, target, &runs_of(&list), skip)? as f64)
    }))
}

fn runs_of(list: &[u64]) -> Vec<transfer::Run> {
    let (runs, _) = list.as_chunks::<3>();
    runs.iter()
        .map(|&[from, to, length]| transfer::Run { from, to, length })
        .collect()
}

/// Pairs are first, second, length, sides (1: the first file alone, 2: the second, 3: both), first... Resolves to the
/// first byte that differs, or -1.
#[napi]
pub fn compare_runs(first: f64, second: f64, pairs: Float64Array) -> Result<Promise<f64>> {
    const CALL: &str = "pread";
    let (first, second) = (descriptor(first)?, descriptor(second)?);
    let list = numbers(&pairs, CALL)?;
    Ok(job(move || {
        let found = compare::compare_runs(first, second, &pairs_of(&list))?;
        Ok(found.map_or(-1.0, |at| at as f64))
    }))
}

fn pairs_of(list: &[u64]) -> Vec<compare::Pair> {
    let (pairs, _) = list.as_chunks::<4>();
    pairs
        .iter()
        .map(|&[first, second, length, sides]| compare::Pair {
            first,
            second,
            length,
            sides: match sides {
                1 => compare::Sides::First,
                2 => compare::Sides::Second,
                _ => compare::Sides::Both,
            },
        })
        .collect()
}

/// Ranges are offset, length, offset... Resolves to one byte a unit.
#[napi]
pub fn zero_ranges(fd: f64, ranges: Float64Array, unit: f64) -> Result<Promise<Uint8Array>> {
    const CALL: &str = "pread";
    let fd = descriptor(fd)?;
    let unit = usize::try_from(whole(unit, CALL)?)
        .unwrap_or(usize::MAX)
        .max(1);
    let list = numbers(&ranges, CALL)?;
    Ok(job(move || {
        let (ranges, _) = list.as_chunks::<2>();
        let ranges: Vec<_> = ranges.iter().map(|&[at, length]| (at, length)).collect();
        Ok(transfer::zero_ranges(fd, &ranges, unit)?.into())
    }))
}

/// Pieces are from, to, length, packed, first, from... Resolves to the bytes written.
#[napi]
pub fn expand_pieces(
    source: f64,
    target: f64,
    pieces: Float64Array,
    zstd: bool,
    size: f64,
    skip: f64,
) -> Result<Promise<f64>> {
    const CALL: &str = "pread";
    let (source, target) = (descriptor(source)?, descriptor(target)?);
    let skip = usize::try_from(whole(skip, CALL)?).unwrap_or(usize::MAX);
    let how = (packing(zstd), cluster(size)?);
    let list = numbers(&pieces, CALL)?;
    Ok(AsyncTask::new(Job(Some(Box::new(move || {
        let (pieces, _) = list.as_chunks::<5>();
        let pieces: Vec<_> = pieces
            .iter()
            .map(|&[from, to, length, packed, first]| packed::Piece {
                from,
                to,
                length,
                packed,
                first,
            })
            .collect();
        let written = packed::expand(source, target, &pieces, how, skip).map_err(error)?;
        Ok(written as f64)
    })))))
}

/// Ranges are offset, length, offset... Resolves to lengths and streams.
#[napi]
pub fn pack_ranges(
    fd: f64,
    ranges: Float64Array,
    zstd: bool,
    size: f64,
    level: f64,
) -> Result<Promise<Uint8Array>> {
    const CALL: &str = "pread";
    let fd = descriptor(fd)?;
    let how = (packing(zstd), cluster(size)?);
    let level = u32::try_from(whole(level, CALL)?).unwrap_or(u32::MAX);
    if !zstd && !deflate::LEVELS.contains(&level) {
        return Err(error("ERRNO:22:packRanges"));
    }
    let list = numbers(&ranges, CALL)?;
    Ok(job(move || {
        let (ranges, _) = list.as_chunks::<2>();
        let ranges: Vec<_> = ranges.iter().map(|&[at, length]| (at, length)).collect();
        Ok(packed::pack(fd, &ranges, how, level)?.into())
    }))
}

fn packing(zstd: bool) -> packed::Packing {
    if zstd {
        packed::Packing::Zstd
    } else {
        packed::Packing::Deflate
    }
}

/// The size of a cluster: the format has none over 2 MiB.
fn cluster(size: f64) -> Outcome<usize> {
    match usize::try_from(whole(size, "cluster")?) {
        Ok(size @ 1..=0x20_0000) => Ok(size),
        _ => Err(Failure::new(libc::EINVAL, "cluster")),
    }
}

fn numbers(values: &[f64], call: &'static str) -> Outcome<Vec<u64>> {
    values.iter().map(|value| whole(*value, call)).collect()
}

/// Operations are offset, length, kind, offset... (kinds: 0 read, 1 write, 2 write and fdatasync, 3 punch, 4 fdatasync).
/// Resolves to engine (0 io_uring, 1 threads), errno that kept from io_uring, elapsed, latency, finish, latency...
#[napi]
pub fn run_workload(
    fd: f64,
    operations: Float64Array,
    depth: f64,
    seed: f64,
    limit: f64,
    threads: bool,
) -> Result<Promise<Float64Array>> {
    const CALL: &str = "runWorkload";
    let fd = descriptor(fd)?;
    let depth = usize::try_from(whole(depth, CALL)?).unwrap_or(usize::MAX);
    let (seed, limit) = (whole(seed, CALL)?, whole(limit, CALL)?);
    let list = numbers(&operations, CALL)?;
    Ok(job(move || {
        let (operations, _) = list.as_chunks::<3>();
        let operations = operations
            .iter()
            .map(|&[offset, length, kind]| workload::Operation::new(offset, length, kind))
            .collect::<Outcome<Vec<_>>>()?;
        let how = workload::How {
            depth,
            seed,
            limit,
            threads,
        };
        let report = workload::run(fd, &operations, how)?;
        let head = [
            report.engine as u64,
            report.refused.unsigned_abs().into(),
            report.elapsed,
        ];
        let done = report
            .timings
            .iter()
            .flat_map(|timing| [timing.latency, timing.finish]);
        Ok(doubles(head.into_iter().chain(done)))
    }))
}

/// The bytes read, or -1 where reading would have to wait.
#[napi]
pub fn read_cached(fd: f64, mut into: Uint8Array, offset: f64) -> Result<f64> {
    // SAFETY: JavaScript, which owns the buffer, stands still during the call.
    let target = unsafe { into.as_mut() };
    let found = cached::read(descriptor(fd)?, target, whole(offset, "preadv2")?);
    Ok(found.map_or(-1.0, |count| count as f64))
}

/// Many small requests; the memory stays JavaScript's, and is let go of on its thread.
pub struct Batch {
    fd: i32,
    way: batch::Way,
    requests: Vec<(u64, u64)>,
    memory: Option<Uint8Array>,
    ring: bool,
}

impl Task for Batch {
    type Output = batch::Left;
    type JsValue = Vec<u32>;

    fn compute(&mut self) -> Result<batch::Left> {
        let memory = self
            .memory
            .as_mut()
            .ok_or_else(|| error("ERRNO:5:run twice"))?;
        // SAFETY: JavaScript lends the buffer until the promise settles.
        let bytes = unsafe { memory.as_mut() };
        match batch::run(self.fd, self.way, &self.requests, bytes, self.ring) {
            Ok(left) => Ok(left),
            Err(batch::Broken::Refused(failure)) => Err(error(failure)),
            Err(batch::Broken::Lost(failure)) => {
                std::mem::forget(self.memory.take());
                Err(error(failure))
            }
        }
    }

    fn resolve(&mut self, _env: Env, left: batch::Left) -> Result<Vec<u32>> {
        Ok(left)
    }
}

/// Ranges are offset, length, offset... Resolves to the numbers of the requests that were not done whole.
#[napi]
pub fn run_batch(
    fd: f64,
    write: bool,
    ranges: Float64Array,
    memory: Uint8Array,
    ring: bool,
) -> Result<AsyncTask<Batch>> {
    let way = if write {
        batch::Way::Write
    } else {
        batch::Way::Read
    };
    let fd = descriptor(fd)?;
    let list = numbers(&ranges, way.call())?;
    let (ranges, _) = list.as_chunks::<2>();
    let requests = ranges.iter().map(|&[at, length]| (at, length)).collect();
    let memory = Some(memory);
    Ok(AsyncTask::new(Batch {
        fd,
        way,
        requests,
        memory,
        ring,
    }))
}

/// Resolves to size, logical sector, physical sector.
#[napi]
pub fn device_info(fd: f64) -> Promise<Float64Array> {
    job(move || {
        let info = device::info(descriptor(fd)?)?;
        Ok(doubles([
            info.size,
            info.logical_sector.into(),
            info.physical_sector.into(),
        ]))
    })
}

#[napi]
pub fn device_discard(fd: f64, offset: f64, length: f64) -> Promise<()> {
    job(move || {
        const CALL: &str = "ioctl BLKDISCARD";
        device::discard(descriptor(fd)?, whole(offset, CALL)?, whole(length, CALL)?)
    })
}

#[napi]
pub fn device_zero_out(fd: f64, offset: f64, length: f64) -> Promise<()> {
    job(move || {
        const CALL: &str = "ioctl BLKZEROOUT";
        device::zero_out(descriptor(fd)?, whole(offset, CALL)?, whole(length, CALL)?)
    })
}

/// Resolves to whether copy-on-write is off.
#[napi]
pub fn set_no_cow(fd: f64) -> Promise<bool> {
    job(move || flags::set_no_cow(descriptor(fd)?))
}

/// Resolves to bytes.
#[napi]
pub fn extent_size_hint(fd: f64) -> Promise<u32> {
    job(move || flags::extent_size_hint(descriptor(fd)?))
}

#[napi]
pub fn set_extent_size_hint(fd: f64, bytes: f64) -> Promise<()> {
    job(move || {
        flags::set_extent_size_hint(descriptor(fd)?, whole(bytes, "ioctl FS_IOC_FSSETXATTR")?)
    })
}

#[napi]
pub fn aligned_buffer(env: &Env, size: f64, alignment: f64) -> Result<BufferSlice<'_>> {
    const CALL: &str = "alignedBuffer";
    let mut memory = buffer::Aligned::zeroed(whole(size, CALL)?, whole(alignment, CALL)?)?;
    let (start, length) = (memory.as_mut_ptr(), memory.len());
    // SAFETY: the memory moves into the finalizer, which runs when JavaScript has let go of the buffer.
    unsafe { BufferSlice::from_external(env, start, length, memory, |_env, memory| drop(memory)) }
}

#[napi]
pub fn lock_bytes(fd: f64, bytes: Vec<f64>) -> Result<()> {
    Ok(lock::lock(descriptor(fd)?, &offsets(&bytes)?)?)
}

#[napi]
pub fn unlock_bytes(fd: f64, bytes: Vec<f64>) -> Result<()> {
    Ok(lock::unlock(descriptor(fd)?, &offsets(&bytes)?)?)
}

/// The byte, or -1.
#[napi]
pub fn find_locked(fd: f64, bytes: Vec<f64>) -> Result<f64> {
    let found = lock::find_locked(descriptor(fd)?, &offsets(&bytes)?)?;
    Ok(found.map_or(-1.0, |byte| byte as f64))
}

fn offsets(bytes: &[f64]) -> Outcome<Vec<u64>> {
    bytes
        .iter()
        .map(|byte| whole(*byte, "fcntl F_OFD_SETLK"))
        .collect()
}

/// The caller must not touch `into` before the promise settles.
#[napi]
pub fn zstd_decompress(source: Uint8Array, into: Uint8Array) -> Promise<()> {
    // Both hold references, so that the memory outlives the work.
    let mut into = into;
    AsyncTask::new(Job(Some(Box::new(move || {
        // SAFETY: JavaScript lends the buffer until the promise settles.
        let target = unsafe { into.as_mut() };
        codec::decompress(&source, target)
            .map_err(|damage| error(format!("BAD_COMPRESSED:{}", damage.reason())))
    }))))
}

/// Resolves to one frame, or to null where it would have `limit` bytes or more. The caller must not change `source`
/// before the promise settles.
#[napi]
pub fn zstd_compress(source: Uint8Array, level: i32, limit: f64) -> Promise<Option<Uint8Array>> {
    AsyncTask::new(Job(Some(Box::new(move || {
        let limit = usize::try_from(whole(limit, "zstdCompress")?).unwrap_or(usize::MAX);
        let frame =
            codec::compress(&source, level, limit).map_err(|_| error("ERRNO:12:zstdCompress"))?;
        Ok(frame.map(Uint8Array::from))
    }))))
}

/// The caller must not touch `into` before the promise settles.
#[napi]
pub fn inflate(source: Uint8Array, into: Uint8Array) -> Promise<()> {
    let mut into = into;
    AsyncTask::new(Job(Some(Box::new(move || {
        // SAFETY: JavaScript lends the buffer until the promise settles.
        let target = unsafe { into.as_mut() };
        deflate::inflate(&source, target)
            .map_err(|reason| error(format!("BAD_COMPRESSED:{reason}")))
    }))))
}

/// Resolves to a raw stream, or to null where it would have `limit` bytes or more or is not worth making. The caller
/// must not change `source` before the promise settles.
#[napi]
pub fn deflate_raw(source: Uint8Array, level: f64, limit: f64) -> Promise<Option<Uint8Array>> {
    AsyncTask::new(Job(Some(Box::new(move || {
        let limit = usize::try_from(whole(limit, "deflateRaw")?).unwrap_or(usize::MAX);
        let level = u32::try_from(whole(level, "deflateRaw")?).unwrap_or(u32::MAX);
        if !deflate::LEVELS.contains(&level) {
            return Err(error("ERRNO:22:deflateRaw"));
        }
        Ok(deflate::deflate(&source, level, limit).map(Uint8Array::from))
    }))))
}
