/*
 * Reads the whole guest content of an image through the library: the process that `whole.ts` starts, so that the memory
 * that this takes can be told. Arguments: path and format.
 */
import { createHash } from 'node:crypto';
import { openImageFile } from '../../src/op/open.ts';
import type { WholeRead } from './whole.ts';

const [path = '', format = ''] = process.argv.slice(2);
const image = await openImageFile(path, { format });
const start = performance.now();
const hash = createHash('sha256');
const buffer = new Uint8Array(1024 ** 2);
for (let at = 0; at < image.size; at += buffer.length) {
  const part = buffer.subarray(0, Math.min(buffer.length, image.size - at));
  await image.read(part, at);
  hash.update(part);
}
const result: WholeRead = {
  sha256: hash.digest('hex'),
  bytes: image.size,
  seconds: (performance.now() - start) / 1000,
  mostMemory: process.resourceUsage().maxRSS * 1024,
};
await image.close();
process.stdout.write(JSON.stringify(result));
