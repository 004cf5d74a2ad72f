// Writes to an image until it is killed; prints a line whenever a flush has ended, so that its parent knows what counts.
//   node --import tsx test/write/killed-child.ts IMAGE SEED
import { openImageFile } from '../../src/op/open.ts';
import { patternOf } from '../tool/model.ts';
import { Random } from '../tool/random.ts';

const [path = '', seed = '1'] = process.argv.slice(2);
const random = new Random(Number(seed));
const image = await openImageFile(path, { format: 'qcow2', write: true });
process.stdout.write('open\n');
for (let generation = 1; ; generation++) {
  const writes: { at: number; length: number; seed: number }[] = [];
  for (let i = random.between(1, 12); i > 0; i--) {
    const at = random.below(image.size / 512) * 512;
    const length = Math.min(image.size - at, random.between(1, 200) * 512);
    const write = { at, length, seed: random.u32() };
    // Told before it is done: from here on the range may hold either.
    process.stdout.write(`${JSON.stringify({ write })}\n`);
    await image.write(patternOf(write.seed, length), at);
    writes.push(write);
  }
  await image.flush();
  process.stdout.write(`${JSON.stringify({ flushed: generation })}\n`);
}
