/** A plain model of dirty bitmaps, and qemu's word on what a bitmap says. */
import { spawn, spawnSync, type ChildProcess } from 'node:child_process';
import { copyFileSync, existsSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { readBitmap } from '../../src/op/bitmaps.ts';
import * as qemu from './qemu.ts';

/** A bitmap as a plain array: one byte for each bit. */
export class BitmapModel {
  readonly name: string;
  readonly granularity: number;
  enabled = true;
  bits: Uint8Array;

  constructor(name: string, granularity: number, size: number) {
    this.name = name;
    this.granularity = granularity;
    this.bits = new Uint8Array(Math.ceil(size / granularity));
  }

  /** Sets the bits of a range in bytes, as far as the disk goes. */
  mark(at: number, length: number): void {
    if (length > 0)
      this.bits.fill(1, Math.floor(at / this.granularity), Math.ceil((at + length) / this.granularity));
  }

  merge(other: BitmapModel): void {
    other.bits.forEach((bit, index) => {
      if (bit !== 0) this.mark(index * other.granularity, other.granularity);
    });
  }

  resize(size: number): void {
    const bits = new Uint8Array(Math.ceil(size / this.granularity));
    bits.set(this.bits.subarray(0, bits.length));
    this.bits = bits;
  }

  /** What is dirty, as text such as `0+512 4096+1024`; the last range ends with a disk of `size` bytes. */
  ranges(size: number): string {
    const found: Dirty[] = [];
    for (let bit = this.bits.indexOf(1); bit >= 0;) {
      const clear = this.bits.indexOf(0, bit);
      const to = clear < 0 ? this.bits.length : clear;
      const at = bit * this.granularity;
      found.push({ at, length: Math.min(size, to * this.granularity) - at });
      bit = this.bits.indexOf(1, to);
    }
    return text(found);
  }
}

interface Dirty {
  readonly at: number;
  readonly length: number;
}

function text(ranges: readonly Dirty[]): string {
  return ranges.map(({ at, length }) => `${String(at)}+${String(length)}`).join(' ');
}

/** What a bitmap says as spindle reads it. */
export async function ourRanges(path: string, name: string): Promise<string> {
  const found: Dirty[] = [];
  for await (const range of readBitmap(path, name, { format: 'qcow2' })) found.push(range);
  return text(found);
}

/** What bitmaps say as qemu reads them, through an NBD server; works on a copy of the image. */
export async function qemuRanges(path: string, names: readonly string[]): Promise<string[]> {
  if (names.length === 0) return [];
  const dir = mkdtempSync(join(tmpdir(), 'spindle-nbd-'));
  const [copy, socket] = [join(dir, 'copy.qcow2'), join(dir, 'socket')];
  let server: ChildProcess | undefined;
  try {
    copyFileSync(path, copy);
    // An export that only reads takes disabled bitmaps only.
    for (const name of names) await qemu.bitmap(copy, name, ['--disable']);
    const bitmaps = names.flatMap((name) => ['-B', name]);
    const image = `driver=qcow2,file.filename=${copy},backing=`;
    // Written when it serves; the socket is there before it listens.
    const pidFile = join(dir, 'pid');
    server = spawn(
      'qemu-nbd',
      ['-r', '-t', '-k', socket, '--pid-file', pidFile, '--image-opts', image, ...bitmaps],
      { stdio: ['ignore', 'ignore', 'pipe'] },
    );
    let said = '';
    server.stderr?.on('data', (chunk: Buffer) => (said += chunk.toString()));
    for (let waited = 0; !existsSync(pidFile); waited++) {
      if (server.exitCode !== null || waited > 3000) throw new Error(`qemu-nbd: ${said}`);
      await new Promise((resolve) => setTimeout(resolve, 10));
    }
    const found: string[] = [];
    for (const name of names) {
      const export_ = `driver=nbd,server.type=unix,server.path=${socket},x-dirty-bitmap=qemu:dirty-bitmap:${name}`;
      const { stdout } = await qemu.qemuImg(['map', '--output=json', '--image-opts', export_]);
      // With a bitmap in the place of the block status, what is dirty shows as not data.
      const entries = JSON.parse(stdout) as qemu.MapEntry[];
      const merged: { at: number; length: number }[] = [];
      for (const { start, length, data } of entries) {
        if (data || length === 0) continue;
        const last = merged.at(-1);
        if (last !== undefined && last.at + last.length === start) last.length += length;
        else merged.push({ at: start, length });
      }
      found.push(text(merged));
    }
    return found;
  } finally {
    if (server !== undefined && server.exitCode === null) {
      const ended = new Promise((resolve) => server?.once('exit', resolve));
      server.kill('SIGKILL');
      await ended;
    }
    rmSync(dir, { recursive: true, force: true });
  }
}

/** A bitmap as `qemu-img info` lists it. */
export interface ListedBitmap {
  readonly name: string;
  readonly granularity: number;
  readonly flags: readonly string[];
}

/** The bitmaps that `qemu-img info` lists. */
export async function listed(path: string): Promise<ListedBitmap[]> {
  const found = (await qemu.info(path)) as {
    'format-specific': { data: { bitmaps?: ListedBitmap[] } };
  };
  return found['format-specific'].data.bitmaps ?? [];
}

/** A block of tests that needs qemu-img, qemu-io and qemu-nbd; see {@link qemu.describeUnlessMissing}. */
export function describeWithNbd(name: string, block: () => void): void {
  const nbd = spawnSync('qemu-nbd', ['--version']).error === undefined ? undefined : 'qemu-nbd';
  qemu.describeUnlessMissing(name, qemu.qemuMissing() ?? nbd, block);
}
