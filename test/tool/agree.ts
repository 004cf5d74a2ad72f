import { createHash } from 'node:crypto';
import { open } from 'node:fs/promises';
import { isDeepStrictEqual } from 'node:util';
import { expect } from 'vitest';
import type { Image } from '../../src/format/image.ts';
import { checkExitCode, checkJson } from '../../src/op/check.ts';
import { checkFile } from '../../src/op/check-file.ts';
import { info } from '../../src/op/info.ts';
import { infoJson } from '../../src/op/info-json.ts';
import { map, type MapEntry } from '../../src/op/map.ts';
import { openImageFile } from '../../src/op/open.ts';
import * as qemu from './qemu.ts';

/** How an image is looked at. */
export interface AgreeOptions {
  readonly format?: string;
  /** Where qemu-img may write the guest's content; when given, the content is compared too. */
  readonly scratch?: string;
  readonly check?: boolean;
}

/** sha256 of the whole guest content, read through the library in chunks of 1 MiB. */
export async function readHash(image: Image, chunk = 1024 ** 2): Promise<string> {
  const hash = createHash('sha256');
  const buffer = new Uint8Array(chunk);
  for (let at = 0; at < image.size; at += chunk) {
    const part = buffer.subarray(0, Math.min(chunk, image.size - at));
    await image.read(part, at);
    hash.update(part);
  }
  return hash.digest('hex');
}

/** Our map with the keys of qemu-img's. */
export async function ourMap(image: Image): Promise<Omit<MapEntry, 'file'>[]> {
  const entries: Omit<MapEntry, 'file'>[] = [];
  for await (const { file: _, ...entry } of map(image)) entries.push(entry);
  return entries;
}

async function syncFile(path: string): Promise<void> {
  const file = await open(path);
  try {
    await file.sync();
  } finally {
    await file.close();
  }
}

/** Expects that spindle and qemu-img say the same about an image: info, map, check, and its bytes. */
export async function expectAgreement(path: string, options: AgreeOptions = {}): Promise<void> {
  const format = options.format ?? 'qcow2';
  // Both look at what the host has allocated, which writing back may change between the two looks.
  await syncFile(path);
  expect(infoJson(await info(path, { format })), 'info').toEqual(await qemu.info(path, { format }));
  // The host may allocate or give back a little (speculative preallocation) between the two looks; not every time.
  for (let attempt = 0; attempt < 3; attempt++) {
    const looked = await openImageFile(path, { format });
    const [ours, theirs] = [await ourMap(looked), await qemu.map(path, { format })];
    await looked.close();
    if (attempt === 2 || isDeepStrictEqual(ours, theirs)) {
      expect(ours, 'map').toEqual(theirs);
      break;
    }
  }
  const image = await openImageFile(path, { format });
  try {
    if (options.scratch !== undefined) {
      expect(await readHash(image), 'content').toBe(
        await qemu.contentHash(path, options.scratch, { format }),
      );
    }
  } finally {
    await image.close();
  }
  if (options.check === false || format === 'raw') return;
  const judged = await qemu.check(path, { format });
  const ours = await checkFile(path, { format });
  expect(checkJson(ours, path, format), 'check').toEqual(judged.json);
  expect(checkExitCode(ours), 'exit code of check').toBe(judged.code);
}
