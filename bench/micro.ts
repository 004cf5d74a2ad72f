import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import benny from 'benny';
import { info } from '../src/op/info.ts';
import { create } from '../src/op/create.ts';
import { map } from '../src/op/map.ts';
import { openImageFile } from '../src/op/open.ts';

const fixture = (name: string): string => fileURLToPath(new URL(`../fixtures/good/${name}`, import.meta.url));

/** Single operations in process, one suite a subject; operations a second with their spread. */
export async function runMicro(): Promise<void> {
  const folder = mkdtempSync(join(tmpdir(), 'spindle-bench-'));
  try {
    const mapped = join(folder, 'mapped.qcow2');
    await create({ path: mapped, format: 'qcow2', size: 1024 ** 3, preallocation: 'metadata' });
    await inspecting(mapped);
    await reading(mapped);
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

async function inspecting(mapped: string): Promise<void> {
  await benny.suite(
    'inspecting',
    benny.add('info', async () => {
      await info(mapped);
    }),
    benny.add('open and close', async () => {
      await (await openImageFile(mapped)).close();
    }),
    benny.add('map of 1 GiB, cold tables', async () => {
      const image = await openImageFile(mapped);
      for await (const _ of map(image)) continue;
      await image.close();
    }),
    benny.cycle(),
    benny.complete(),
  );
}

async function reading(mapped: string): Promise<void> {
  const data = await openImageFile(mapped);
  const zlib = await openImageFile(fixture('zlib-64k.qcow2'));
  const zstd = await openImageFile(fixture('zstd-64k.qcow2'));
  const zero = await openImageFile(fixture('zero.qcow2'));
  const chain = await openImageFile(fixture('chain-top.qcow2'));
  const buffer = new Uint8Array(4096);
  let at = 0;
  await benny.suite(
    'reading 4 KiB',
    benny.add('data, warm tables', async () => {
      at = (at + 1_310_720) % (data.size - 4096);
      await data.read(buffer, at - (at % 512));
    }),
    benny.add('zero cluster', () => zero.read(buffer, 0)),
    benny.add('backing chain of three', () => chain.read(buffer, 0)),
    benny.add('zlib cluster, kept', () => zlib.read(buffer, 0)),
    benny.add('zstd cluster, kept', () => zstd.read(buffer, 0)),
    benny.cycle(),
    benny.complete(),
  );
  for (const image of [data, zlib, zstd, zero, chain]) await image.close();
}
