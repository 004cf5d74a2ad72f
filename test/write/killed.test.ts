import { spawn } from 'node:child_process';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { expect, it } from 'vitest';
import { changeBitmap } from '../../src/op/bitmaps.ts';
import { checkFile } from '../../src/op/check-file.ts';
import { info } from '../../src/op/info.ts';
import { openImageFile } from '../../src/op/open.ts';
import { repairFile } from '../../src/op/repair.ts';
import { listSnapshots } from '../../src/op/snapshots.ts';
import { patternOf } from '../tool/model.ts';
import * as qemu from '../tool/qemu.ts';
import { Random, seedOf } from '../tool/random.ts';
import { missing, type Moment } from '../tool/recorded.ts';
import { tempDir } from '../tool/temp.ts';
import type { Told, Whole } from './killed-child.ts';

const KILLS = Number(process.env['SPINDLE_KILLS'] ?? 200);
const ROOT = fileURLToPath(new URL('../../', import.meta.url));

/** Runs the writer and kills it after a while; gives what it told. */
async function writeAndKill(path: string, seed: number, milliseconds: number): Promise<Told[]> {
  const child = spawn(
    process.execPath,
    ['--import', 'tsx', 'test/write/killed-child.ts', path, String(seed)],
    {
      cwd: ROOT,
      stdio: ['ignore', 'pipe', 'inherit'],
    },
  );
  let text = '';
  let timer: NodeJS.Timeout | undefined;
  child.stdout.on('data', (chunk: Buffer) => {
    text += chunk.toString();
    // The time counts from when the image is open.
    timer ??= setTimeout(() => child.kill('SIGKILL'), milliseconds);
  });
  const signal = await new Promise((resolve) => child.on('exit', (_code, name) => resolve(name)));
  expect(signal, text.slice(-500)).toBe('SIGKILL');
  const lines = text.split('\n').slice(1, -1);
  return lines.map((line) => JSON.parse(line) as Told);
}

/** A moment that can be changed. */
function moment(bytes: Uint8Array, snapshots: ReadonlyMap<string, Uint8Array>): Moment {
  return { records: 0, bytes, snapshots, touched: new Set(), cut: new Set() };
}

/** The moment after a change of the whole image. */
function after(now: Moment, whole: Whole): Moment {
  const snapshots = new Map(now.snapshots);
  let bytes = now.bytes.slice();
  if (whole.do === 'resize') {
    bytes = new Uint8Array(whole.size);
    bytes.set(now.bytes.subarray(0, whole.size));
  } else if (whole.do === 'create') snapshots.set(whole.id, bytes.slice());
  else if (whole.do === 'delete') snapshots.delete(whole.id);
  else bytes = (snapshots.get(whole.id) ?? bytes).slice();
  return moment(bytes, snapshots);
}

/** What may be there after all that was told. */
function possible(start: Moment, told: readonly Told[]): Moment[] {
  let sure = start;
  let loose: NonNullable<Told['write']>[] = [];
  let begun: Whole | undefined;
  for (const { write, flushed, begin, end } of told) {
    if (write !== undefined) loose.push(write);
    if (flushed === true) {
      const bytes = sure.bytes.slice();
      for (const { at, length, seed } of loose) bytes.set(patternOf(seed, length), at);
      sure = moment(bytes, sure.snapshots);
      loose = [];
    }
    if (begin !== undefined) begun = begin;
    if (end === true && begun !== undefined) {
      sure = after(sure, begun);
      begun = undefined;
    }
  }
  for (const { at, length } of loose)
    for (let sector = at / 512; sector < (at + length) / 512; sector++) sure.touched.add(sector);
  if (begun === undefined) return [sure];
  if (begun.do === 'resize')
    for (let sector = begun.size / 512; sector < sure.bytes.length / 512; sector++) sure.cut.add(sector);
  return [sure, after(sure, begun)];
}

/** The disk and its snapshots. */
async function readMoment(path: string): Promise<Moment> {
  const whole = async (snapshot?: string): Promise<Uint8Array> => {
    const image = await openImageFile(path, { format: 'qcow2', snapshot });
    const bytes = new Uint8Array(image.size);
    await image.read(bytes, 0);
    await image.close();
    return bytes;
  };
  const snapshots = new Map<string, Uint8Array>();
  for (const { id } of await listSnapshots(path)) snapshots.set(id, await whole(id));
  return moment(await whole(), snapshots);
}

qemu.describeWithQemu('a killed writer', () => {
  it(`leaves an image that is whole, ${String(KILLS)} times`, { timeout: 1_800_000 }, async () => {
    const path = join(tempDir(), 'killed.qcow2');
    const random = new Random(seedOf('killed'));
    const size = 3 * 1024 ** 2;
    await qemu.create(path, size, { format: 'qcow2', options: { cluster_size: '4k' } });
    let now = moment(new Uint8Array(size), new Map());
    for (let round = 0; round < KILLS; round++) {
      await changeBitmap(path, 'b', [...(round === 0 ? [] : [{ do: 'remove' } as const]), { do: 'add' }]);
      const told = await writeAndKill(path, random.u32(), random.between(1, 150));
      const last = told.slice(-3).map((line) => JSON.stringify(line));
      const context = `round ${String(round)} (SPINDLE_SEED=${String(random.seed)}), last: ${last.join(' ')}`;
      const judged = await qemu.check(path);
      expect([0, 3], `${context}: ${judged.stderr}`).toContain(judged.code);
      expect((await checkFile(path)).corruptions, context).toBe(0);
      const seen = await readMoment(path);
      const wrong = possible(now, told).map((one) => missing(seen, one));
      expect(wrong, context).toContain(null);
      // A bitmap that is not marked as in use says that the disk is what it was: the writer never got to the end.
      const flags = (await info(path)).qcow2?.bitmaps.map((one) => one.flags);
      if (Buffer.compare(seen.bytes, now.bytes) !== 0) expect(flags, context).toEqual([['in-use', 'auto']]);
      now = seen;
      // What leaks adds up.
      if (round % 25 === 24) {
        await repairFile(path, { mode: 'leaks' });
        expect((await qemu.check(path)).code, context).toBe(0);
      }
    }
  });
});
