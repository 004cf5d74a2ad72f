import { fileURLToPath } from 'node:url';
import { defineConfig } from 'vitest/config';
import { BaseSequencer } from 'vitest/node';

/** Tests that take minutes: the option grid, real file systems, fuzzing, random writes and power cuts. Left out by `npm test -- --quick`. */
const SLOW = [
  'test/differential/**',
  'test/benchmark/{filesystems,drill}.test.ts',
  'test/fuzz/**',
  'test/convert/{differential,round-trip}.test.ts',
  'test/chain/{commit,rebase,crash,safety}.test.ts',
  'test/cli/{change,devices,kinds,libvirt,qemu-img,names}.test.ts',
  'test/op/allocate{,-safety}.test.ts',
  'test/pool/{killed,libvirt,race}.test.ts',
  'test/write/{model,interleaved,killed,crash,crash-whole,no-space,no-space-each,lazy}.test.ts',
  'test/write/{amend,amend-crash,bitmaps-model,bitmaps-crash,large}.test.ts',
];
/** Files that take longest, by how long: they begin first, so that none runs on alone at the end. */
const LONGEST = [
  'test/write/model.test.ts',
  'test/convert/round-trip.test.ts',
  'test/write/interleaved.test.ts',
  'test/differential/create.test.ts',
  'test/cli/kinds.test.ts',
  'test/write/crash-whole.test.ts',
  'test/differential/realfs.test.ts',
  'test/fuzz/',
];

class LongestFirst extends BaseSequencer {
  async sort(specifications) {
    const place = ({ moduleId }) => {
      const found = LONGEST.findIndex((name) => moduleId.includes(name));
      return found < 0 ? LONGEST.length : found;
    };
    return (await super.sort(specifications)).sort((a, b) => place(a) - place(b));
  }
}

const quick = process.env.SPINDLE_QUICK === '1';

export default defineConfig({
  root: fileURLToPath(new URL('..', import.meta.url)),
  cacheDir: '.cache/vite',
  test: {
    include: ['test/**/*.test.ts'],
    exclude: quick ? SLOW : [],
    pool: 'forks',
    maxWorkers: 2,
    sequence: { sequencer: LongestFirst },
    testTimeout: 240_000,
    hookTimeout: 300_000,
  },
});
