import { fileURLToPath } from 'node:url';
import { defineConfig } from 'vitest/config';

/** Tests that take minutes: the option grid, real file systems, fuzzing, random writes and power cuts. Left out by `npm test -- --quick`. */
const SLOW = [
  'test/differential/**',
  'test/fuzz/**',
  'test/convert/{differential,round-trip}.test.ts',
  'test/chain/**',
  'test/cli/{change,libvirt}.test.ts',
  'test/op/allocate{,-safety}.test.ts',
  'test/write/{model,interleaved,killed,crash,crash-whole,no-space,no-space-each,lazy}.test.ts',
  'test/write/{amend,amend-crash,bitmaps-model,bitmaps-crash,large}.test.ts',
];
const quick = process.env.SPINDLE_QUICK === '1';

export default defineConfig({
  root: fileURLToPath(new URL('..', import.meta.url)),
  cacheDir: '.cache/vite',
  test: {
    include: ['test/**/*.test.ts'],
    exclude: quick ? SLOW : [],
    pool: 'forks',
    maxWorkers: 2,
    testTimeout: 60_000,
    hookTimeout: 120_000,
  },
});
