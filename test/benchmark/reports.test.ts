// The reports in docs/study are reports still: what reads one of `bench allocation --json` takes them.
import { readFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { expect, it } from 'vitest';
import { compareStudies, parseStudy } from '../../src/benchmark/compare.ts';
import type { Study } from '../../src/benchmark/study.ts';

function kept(name: string): Study {
  const path = fileURLToPath(new URL(`../../docs/study/${name}.json`, import.meta.url));
  return parseStudy(readFileSync(path, 'utf8'), path);
}

it('the full runs in the documentation can be compared, with each other and with themselves', () => {
  const [ext4, xfs, btrfs] = [kept('ext4'), kept('xfs'), kept('btrfs')];
  expect([ext4, xfs, btrfs].map(({ environment }) => environment.fileSystem)).toEqual([
    'ext4',
    'xfs',
    'btrfs',
  ]);
  const same = compareStudies(ext4, ext4);
  expect(same.length).toBeGreaterThan(100);
  for (const { ratio } of same) expect(ratio.value).toBe(1);
  expect(same.filter(({ finding }) => finding === 'slower' || finding === 'faster')).toEqual([]);
  expect(compareStudies(ext4, xfs).map(({ subject }) => subject)).toEqual(same.map(({ subject }) => subject));
  // What the README beside them says of creation.
  for (const study of [ext4, xfs, btrfs]) {
    const eager = study.conclusion.verdict[0]?.lines.find((line) => /^Creating raw-thick-eager:/.test(line));
    expect(eager).toMatch(/: slower than raw-thin: \d+(\.\d)? times/);
  }
});
