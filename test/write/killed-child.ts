// Works on an image until it is killed; tells in lines what it begins and what is durable, so that its parent knows what
// counts.
//   node --import tsx test/write/killed-child.ts IMAGE SEED
import { DiskImage } from '../../src/format/disk-image.ts';
import { findSnapshot } from '../../src/format/qcow2/driver.ts';
import { Qcow2WriteDriver } from '../../src/format/qcow2/write/driver.ts';
import { applySnapshot, createSnapshot, deleteSnapshot } from '../../src/format/qcow2/write/snapshots.ts';
import { openImageFile } from '../../src/op/open.ts';
import { patternOf } from '../tool/model.ts';
import { Random } from '../tool/random.ts';

/** A change of the whole image. */
export type Whole =
  | { readonly do: 'create' | 'apply' | 'delete'; readonly id: string }
  | { readonly do: 'resize'; readonly size: number };

/** One line. */
export interface Told {
  /** Before it is done: from here on the range may hold either. */
  readonly write?: { readonly at: number; readonly length: number; readonly seed: number };
  /** All writes so far are durable. */
  readonly flushed?: boolean;
  /** Before it is done, with nothing else under way. */
  readonly begin?: Whole;
  /** What was begun last is durable. */
  readonly end?: boolean;
}

const [path = '', seed = '1'] = process.argv.slice(2);
const random = new Random(Number(seed));
const tell = (line: Told): void => {
  process.stdout.write(`${JSON.stringify(line)}\n`);
};

const opened = await openImageFile(path, { format: 'qcow2', write: true });
if (!(opened instanceof DiskImage) || !(opened.driver instanceof Qcow2WriteDriver)) throw new Error(path);
const [image, driver] = [opened, opened.driver];

/** Something with the whole of the image that is possible now. */
function anyWhole(): Whole {
  const { snapshots } = driver.metadata;
  if (random.chance(0.3)) return { do: 'resize', size: random.between(1, 8192) * 512 };
  if (snapshots.length < 2) return { do: 'create', id: String(random.u32()) };
  const { id } = random.pick(snapshots);
  return { do: snapshots.length > 3 ? 'delete' : random.pick(['apply', 'delete'] as const), id };
}

async function change(whole: Whole): Promise<void> {
  if (whole.do === 'resize') {
    const grows = whole.size > image.size;
    const preallocation = grows ? random.pick(['off', 'metadata', 'falloc', 'full'] as const) : 'off';
    return image.resize(whole.size, { preallocation });
  }
  await image.alone(() =>
    driver.changeSnapshots<unknown>((all) => {
      if (whole.do === 'create') return createSnapshot(all, { name: 'a', date: new Date(0), id: whole.id });
      const found = findSnapshot(driver.metadata.snapshots, whole.id);
      return whole.do === 'apply' ? applySnapshot(all, found) : deleteSnapshot(all, found);
    }),
  );
}

process.stdout.write('open\n');
for (;;) {
  for (let i = random.between(1, 12); i > 0; i--) {
    const at = random.below(image.size / 512) * 512;
    const write = {
      at,
      length: Math.min(image.size - at, random.between(1, 200) * 512),
      seed: random.u32(),
    };
    tell({ write });
    await image.write(patternOf(write.seed, write.length), at);
  }
  await image.flush();
  tell({ flushed: true });
  if (!random.chance(0.4)) continue;
  const begin = anyWhole();
  tell({ begin });
  await change(begin);
  tell({ end: true });
}
