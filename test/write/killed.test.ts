import { spawn } from 'node:child_process';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { expect, it } from 'vitest';
import { changeBitmap } from '../../src/op/bitmaps.ts';
import { info } from '../../src/op/info.ts';
import { openImageFile } from '../../src/op/open.ts';
import { checkFile } from '../../src/op/check-file.ts';
import { firstDifference, patternOf } from '../tool/model.ts';
import * as qemu from '../tool/qemu.ts';
import { Random, seedOf } from '../tool/random.ts';
import { tempDir } from '../tool/temp.ts';

const KILLS = Number(process.env['SPINDLE_KILLS'] ?? 200);
const ROOT = fileURLToPath(new URL('../../', import.meta.url));

interface Told {
  readonly write?: { readonly at: number; readonly length: number; readonly seed: number };
  readonly flushed?: number;
}

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

qemu.describeWithQemu('a killed writer', () => {
  it(`leaves an image that is whole, ${String(KILLS)} times`, { timeout: 1_800_000 }, async () => {
    const path = join(tempDir(), 'killed.qcow2');
    const size = 3 * 1024 ** 2;
    const random = new Random(seedOf('killed'));
    let model = new Uint8Array(size);
    await qemu.create(path, size, { format: 'qcow2', options: { cluster_size: '4k' } });
    for (let round = 0; round < KILLS; round++) {
      const context = `round ${String(round)} (SPINDLE_SEED=${String(random.seed)})`;
      const before = model;
      await changeBitmap(path, 'b', [...(round === 0 ? [] : [{ do: 'remove' } as const]), { do: 'add' }]);
      const told = await writeAndKill(path, random.u32(), random.between(1, 150));
      const lastFlush = told.findLastIndex(({ flushed }) => flushed !== undefined);
      for (const { write } of told.slice(0, lastFlush + 1)) {
        if (write === undefined) continue;
        if (model === before) model = before.slice();
        model.set(patternOf(write.seed, write.length), write.at);
      }
      const judged = await qemu.check(path);
      expect([0, 3], `${context}: ${judged.stderr}`).toContain(judged.code);
      expect((await checkFile(path)).corruptions, context).toBe(0);
      const image = await openImageFile(path, { format: 'qcow2' });
      const found = new Uint8Array(size);
      await image.read(found, 0);
      await image.close();
      // A bitmap that is not marked as in use says that the disk is what it was: the writer never got to the end.
      const flags = (await info(path)).qcow2?.bitmaps.map((one) => one.flags);
      if (firstDifference(found, before) >= 0) expect(flags, context).toEqual([['in-use', 'auto']]);
      const sure = found.slice();
      for (const { write } of told.slice(lastFlush + 1)) {
        if (write !== undefined) sure.set(model.subarray(write.at, write.at + write.length), write.at);
      }
      expect(firstDifference(sure, model), context).toBe(-1);
      model = found;
    }
  });
});
