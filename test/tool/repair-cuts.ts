/** Repairs that are cut short by the power, at every write, and what must hold then. */
import { createHash } from 'node:crypto';
import { expect } from 'vitest';
import { isSpindleError } from '../../src/core/errors.ts';
import { denyAll } from '../../src/format/gate.ts';
import type { Image } from '../../src/format/image.ts';
import { openImage } from '../../src/format/open.ts';
import { readMetadata } from '../../src/format/qcow2/metadata.ts';
import { applyRepair } from '../../src/format/qcow2/repair/apply.ts';
import { planRepair } from '../../src/format/qcow2/repair/plan.ts';
import type { RepairPlan } from '../../src/format/qcow2/repair/step.ts';
import { trace, type TraceRecord } from '../../src/layer/trace.ts';
import { nodeCodec } from '../../src/native/codec.ts';
import { check } from '../../src/op/check.ts';
import { repair } from '../../src/op/repair.ts';
import { MemoryStorage } from '../../src/storage/memory.ts';
import type { Random } from './random.ts';

/** The hash of bytes, in hex. */
export const sha256 = (bytes: Uint8Array): string => createHash('sha256').update(bytes).digest('hex');

/** What the guest reads, in pieces of 4 KiB; null for what cannot be read. Undefined when the image does not open. */
export async function content(open: () => Promise<Image>): Promise<(string | null)[] | undefined> {
  let image: Image;
  try {
    image = await open();
  } catch (error) {
    if (isSpindleError(error)) return undefined;
    throw error;
  }
  try {
    const pieces: (string | null)[] = [];
    const piece = new Uint8Array(4096);
    for (let at = 0; at < image.size; at += piece.length) {
      const part = piece.subarray(0, Math.min(piece.length, image.size - at));
      try {
        await image.read(part, at);
        pieces.push(part.every((byte) => byte === 0) ? '' : sha256(part));
      } catch (error) {
        if (!isSpindleError(error)) throw error;
        pieces.push(null);
      }
    }
    return pieces;
  } finally {
    await image.close();
  }
}

/** What the guest of the image in `bytes` reads; with a snapshot, what it read then. */
export const contentOf = (bytes: Uint8Array, snapshot?: string): Promise<(string | null)[] | undefined> =>
  content(() =>
    openImage(MemoryStorage.from(bytes), {
      ...{ format: 'qcow2', codec: nodeCodec, gate: denyAll, backing: false, name: 'x', id: 'x', snapshot },
    }),
  );

/** What could be read before must read the same. */
export function expectKept(
  before: (string | null)[] | undefined,
  after: (string | null)[] | undefined,
  what = '',
): void {
  if (before === undefined) return;
  const lost = before.flatMap((hash, i) => (hash === null || hash === after?.[i] ? [] : [i * 4096]));
  expect(lost, `${what}: guest offsets that read otherwise`).toEqual([]);
}

/** A file as writes leave it. */
class Disk {
  #bytes: Uint8Array;
  size: number;

  constructor(bytes: Uint8Array) {
    this.#bytes = bytes.slice();
    this.size = bytes.length;
  }

  resize(size: number): void {
    if (size > this.#bytes.length) {
      const larger = new Uint8Array(size * 2);
      larger.set(this.#bytes);
      this.#bytes = larger;
    }
    if (size < this.size) this.#bytes.fill(0, size, this.size);
    this.size = size;
  }

  write(from: Uint8Array, at: number): void {
    if (at + from.length > this.size) this.resize(at + from.length);
    this.#bytes.set(from, at);
  }

  bytes(): Uint8Array {
    return this.#bytes.slice(0, this.size);
  }
}

function replay(disk: Disk, { operation, at, length, bytes }: TraceRecord): void {
  if (operation === 'resize') disk.resize(length);
  else if (operation === 'write' && bytes !== undefined) disk.write(bytes, at);
}

/** Any part of what was not flushed may be there, in sectors. */
function replayPart(disk: Disk, record: TraceRecord, random: Random): void {
  const { operation, at, bytes } = record;
  if (operation !== 'write' || bytes === undefined) {
    if (random.chance(0.5)) replay(disk, record);
    return;
  }
  const kind = random.below(3);
  if (kind === 0) return;
  if (kind === 1) {
    replay(disk, record);
    return;
  }
  for (let from = at; from < at + bytes.length;) {
    const to = Math.min((Math.floor(from / 512) + 1) * 512, at + bytes.length);
    if (random.chance(0.5)) disk.write(bytes.subarray(from - at, to - at), from);
    from = to;
  }
}

/** All files that a power cut may leave: after each write and flush, with each time some choices of what was not flushed. */
export function* cuts(
  start: Uint8Array,
  records: readonly TraceRecord[],
  random: Random,
): Generator<[string, Uint8Array]> {
  const changes = records.filter(({ operation }) => ['write', 'resize', 'flush'].includes(operation));
  const durable = new Disk(start);
  let open: TraceRecord[] = [];
  for (const [index, record] of changes.entries()) {
    if (record.operation === 'flush') {
      for (const one of open) replay(durable, one);
      open = [];
    } else open.push(record);
    const whole = new Disk(durable.bytes());
    for (const one of open) replay(whole, one);
    yield [`after operation ${String(index)} (${record.operation})`, whole.bytes()];
    for (let i = 0; i < (open.length === 0 ? 0 : 3); i++) {
      const torn = new Disk(durable.bytes());
      for (const one of open) replayPart(torn, one, random);
      yield [`torn after operation ${String(index)}`, torn.bytes()];
    }
  }
}

/** What may lose data: it must not become more. Flags that are missing, and leaks, may. */
async function dangers(bytes: Uint8Array): Promise<Set<string>> {
  const result = await check(MemoryStorage.from(bytes), { problemLimit: Infinity });
  return new Set(
    result.problems
      .filter(({ code }) => /^REFCOUNT_TOO_LOW|^REFCOUNT_UNREADABLE|^REFBLOCK|^REFERENCE_OVERFLOW/.test(code))
      .map(({ code, hostOffset }) => `${code} at ${String(hostOffset)}`),
  );
}

async function planOf(storage: MemoryStorage): Promise<RepairPlan> {
  return planRepair(storage, await readMetadata(storage, 'check'), 'all');
}

/** Cuts the power everywhere in a repair. `reorder` may break its order; `alsoHolds` of each once it is repaired. */
export async function expectSafe(
  bytes: Uint8Array,
  what: string,
  random: Random,
  reorder: (plan: RepairPlan) => RepairPlan = (plan) => plan,
  alsoHolds: (repaired: Uint8Array) => Promise<void> = () => Promise.resolve(),
): Promise<void> {
  const storage = MemoryStorage.from(bytes);
  const plan = reorder(await planOf(storage));
  const traced = trace(storage, { keepBytes: true });
  const goal = await applyRepair(traced, plan);
  const before = await contentOf(bytes);
  const threatened = await dangers(bytes);
  for (const [where, cut] of cuts(bytes, traced.records, random)) {
    const message = `${what}, ${where}`;
    expectKept(before, await contentOf(cut), message);
    const added = [...(await dangers(cut))].filter((danger) => !threatened.has(danger));
    expect(added, message).toEqual([]);
    const again = MemoryStorage.from(cut);
    const done = await repair(again, { mode: 'all' });
    expect(done.after.corruptions, message).toBeLessThanOrEqual(goal.after.corruptions);
    expect(done.after.checkErrors, message).toBe(0);
    expectKept(before, await contentOf(again.toBytes()), `${message}, repaired`);
    await alsoHolds(again.toBytes());
  }
}
