/*
 * Reads the whole guest content of an image through the library, in a process of its own, so that the memory that it
 * takes can be told. Arguments: path and format.
 */
import { openImageFile } from '../../src/op/open.ts';
import { readHash } from './hash.ts';
import type { WholeRead } from './whole.ts';

const [path = '', format = ''] = process.argv.slice(2);
const image = await openImageFile(path, { format });
const start = performance.now();
const sha256 = await readHash(image);
const seconds = (performance.now() - start) / 1000;
await image.close();
const result: WholeRead = {
  sha256,
  seconds,
  bytes: image.size,
  mostMemory: process.resourceUsage().maxRSS * 1024,
};
process.stdout.write(JSON.stringify(result));
