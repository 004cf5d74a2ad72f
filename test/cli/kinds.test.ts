// Called as qemu-img: every verb on every kind of image, beside the real one.
import { readdirSync, rmSync, symlinkSync } from 'node:fs';
import { join } from 'node:path';
import { beforeAll, describe, expect, it } from 'vitest';
import { expectComplaint, said } from '../tool/beside.ts';
import { builtCli, MAIN, spindle } from '../tool/cli.ts';
import { copyOf, EVERY_KIND, expectSameResult, studio, words } from '../tool/every-kind.ts';
import type { Kind } from '../tool/kinds.ts';
import * as qemu from '../tool/qemu.ts';
import { tempDir } from '../tool/temp.ts';
import { shareOf } from '../tool/share.ts';

let main = '';

beforeAll(async () => {
  await builtCli();
  main = join(tempDir(), 'qemu-img');
  symlinkSync(MAIN, main);
}, 120_000);

/** Why ours does otherwise, for which kinds, and its exit code. */
interface Difference {
  readonly reason: string;
  readonly kinds: RegExp;
  readonly code?: number;
}

/** A command line, see {@link words}. */
interface Line {
  readonly line: string;
  /** Kinds that it is for; default all. */
  readonly only?: (kind: Kind) => boolean;
  /** Without an exit code it is the names of images: ours says the file, qemu-img the description that it was opened by. */
  readonly differs?: Difference | readonly Difference[];
}

/** The judge takes seconds to make a LUKS header, whatever comes after it. */
const few = ({ name }: Kind): boolean => ['raw', 'extended L2', 'luks', 'encrypted'].includes(name);

/** The judge's bench takes no secrets. */
const open = ({ encrypted }: Kind): boolean => encrypted !== true;

/** The judge does not get done with refcounts of another width in clusters of 2 MiB. */
const soon = ({ name }: Kind): boolean => name !== 'qcow2, large clusters';

const ENCRYPTED = /^(encrypted|luks)/;
const NAMED = { reason: 'an image that is opened with a key is shown by its file', kinds: ENCRYPTED };
const NOISE = { reason: 'unwritten clusters would read as noise', kinds: /^encrypted/, code: 1 };
const ZEROES = { reason: 'what a luks volume grows by reads as zeroes, not noise', kinds: /^luks/, code: 0 };
const KEPT = { reason: 'version 2 has no bitmaps: they are not given up', kinds: /^with bitmaps/, code: 1 };
const MORE = { reason: 'what is opened with a key is known by its file too', kinds: ENCRYPTED, code: 0 };

const lines = (...all: (string | Line)[]): Line[] =>
  all.map((one) => (typeof one === 'string' ? { line: one } : one));

/** Lines that change nothing but files whose names begin with `x`. */
const READING: Readonly<Record<string, readonly Line[]>> = {
  'info and check': lines(
    { line: 'info @', differs: NAMED },
    { line: 'info -U --output=json @', differs: NAMED },
    { line: 'info --backing-chain --output=json @', differs: NAMED },
    { line: 'info --backing-chain @top', differs: NAMED },
    { line: 'info --backing-chain --output=json @top', differs: NAMED },
    'check @',
    'check --output=json @',
    'check -U --output=json @top',
  ),
  map: lines(
    'map @',
    'map --output=json @',
    'map -s 100k -l 1M --output=json @',
    'map -s 65k -l 2M @',
    'map -U --output=json @top',
    'map @top',
  ),
  compare: lines(
    'compare @ +r.raw',
    'compare -s @ +r.raw',
    'compare -s -U @ &d',
    'compare -p @ +zero.raw',
    'compare -q @ +other.raw',
    'compare -s @ +other.raw',
  ),
  measure: lines(
    'measure --output=json -O raw @',
    'measure --output=json -O qcow2 @',
    'measure -O qcow2 -o cluster_size=4k @',
    'measure --output=json -O qcow2 -o extended_l2=on,refcount_bits=1 @',
    'measure --output=json -O qcow2 -l before @',
    { line: 'measure --output=json $ -O luks -o key-secret=s,iter-time=10 @', only: few },
    'measure -U --output=json -O qcow2 @top',
  ),
  'snapshot, bench, amend': lines(
    'snapshot -l @',
    'snapshot -U -l @',
    { line: 'bench -c 4 -s 4096 @', only: open },
    { line: 'bench -U -c 6 -d 3 -S 1k -o 512 -s 512 -t none @', only: open },
  ),
  'convert to raw': lines(
    'convert @ x',
    'convert -p -S 0 @ x',
    'convert -S 64k -W -m 4 @ x',
    'convert -U -r 100M -T none @ x',
    'convert -l before @ x',
    'convert -l snapshot.name=before -O qcow2 @ x',
    'convert @ &d x',
    'convert -n @ xabsent',
    'convert @top x',
  ),
  'convert to qcow2': lines(
    'convert -O qcow2 @ x',
    'convert -O qcow2 -c @ x',
    'convert -O qcow2 -c -o compression_type=zstd,cluster_size=16k @ x',
    'convert -O qcow2 -o extended_l2=on,cluster_size=128k @ x',
    'convert -O qcow2 -o compat=0.10,refcount_bits=16 @ x',
    'convert -O qcow2 -o data_file=x.data @ x',
    'convert -O qcow2 -o data_file=x.rawdata,data_file_raw=on @ x',
    'convert -O qcow2 -o preallocation=falloc -S 0 @ x',
    'convert -O qcow2 -m 4 -W @ &d x',
    'convert -O qcow2 --bitmaps @ x',
    'convert -O qcow2 ^ @top x',
  ),
  'convert to encrypted': lines(
    { line: 'convert $ -O luks -o key-secret=s,iter-time=10 @ x', only: few },
    {
      line: 'convert $ -O qcow2 -o encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10 @ x',
      only: few,
    },
    'convert $ -O qcow2 -o encrypt.format=aes,encrypt.key-secret=s @ x',
  ),
  dd: lines(
    'dd if@ of=x',
    'dd if@ of=x bs=64k count=10 skip=3',
    'dd -O qcow2 if@ of=x bs=1M',
    'dd -U if@ of=x bs=512 skip=100 count=7',
    'dd if@ of=x bs=1M skip=9',
  ),
  create: lines(
    'create -f qcow2 ^ x',
    'create -f qcow2 ^ x 8M',
    'create -q -u -f qcow2 ^ x 5M',
    'create -f qcow2 -o extended_l2=on,cluster_size=32k ^ x',
    'create -f qcow2 -o data_file=x.data ^ x',
    'create -f qcow2 -o preallocation=metadata ^ x',
    'create -f raw ^ x',
  ),
};

/** Lines that change images: on copies of their own. */
const WRITING: Readonly<Record<string, readonly Line[]>> = {
  amend: lines(
    { line: 'amend -o compat=0.10 @', differs: KEPT },
    'amend -o compat=1.1 @',
    'amend -p -o lazy_refcounts=on @',
    { line: 'amend -o refcount_bits=64 @', only: soon },
    { line: 'amend -o refcount_bits=1 @', only: soon },
    'amend -o size=8M @',
    'amend -o data_file=r.raw @',
    'amend -o compression_type=zstd @',
    'amend -o extended_l2=on @',
  ),
  'bitmap and bench': lines(
    'bitmap --add @ new',
    'bitmap --add --disable -g 4k @ new',
    'bitmap --clear @ one',
    'bitmap --remove @ one',
    'bitmap --disable @ one',
    'bitmap --enable @ two',
    'bitmap --merge one @ two',
    'bitmap --add --merge one --disable @ new',
    { line: 'bench -w -c 9 --pattern=7 --flush-interval=4 -d 2 -s 4096 @', only: open },
    { line: 'bench -w -c 3 -s 65536 -S 512 @top', only: open },
  ),
  'check, snapshot': lines(
    'check -r all @',
    'check -r leaks --output=json @',
    'snapshot -c new @',
    'snapshot -a before @',
    'snapshot -d before @',
    'snapshot -a 1 @',
  ),
  commit: lines(
    'commit @top',
    'commit -d @top',
    { line: 'commit -b d @top', differs: MORE },
    'commit -q -r 100M @top',
    'commit @',
    'commit -d @',
  ),
  rebase: lines(
    'rebase -b r.raw -F raw @top',
    'rebase -p -b other.raw -F raw @top',
    'rebase -u -b other.raw -F raw @top',
    'rebase -b  @top',
    'rebase -c -b  @top',
    'rebase -u -b  @top',
    { line: 'rebase -b r.raw -F raw @', differs: { ...MORE, kinds: /^encrypted/ } },
    'rebase -b  @',
    'rebase -u -b  @',
  ),
  resize: lines(
    'resize @ +1M',
    { line: 'resize -q --preallocation=metadata @ +1M', differs: NOISE },
    { line: 'resize --preallocation=falloc @ +1M', differs: NOISE },
    { line: 'resize --preallocation=full @ 4M', differs: [NOISE, ZEROES] },
    'resize --shrink @ 1M',
    'resize @ 1M',
    'resize --shrink @ -512',
    'resize @top 4M',
  ),
  'into what is there': lines(
    'convert -n @ other.raw',
    'convert -n --target-is-zero @ zero.raw',
    'convert -n -O qcow2 @ top',
    'convert @ r.raw',
    'dd bs=1M count=1 if@ of=other.raw',
  ),
};

/** Runs a line with both, and compares what they say, and what they made. */
async function beside(kind: Kind, { line, differs }: Line, ours: string, theirs: string): Promise<void> {
  const args = words(kind, line);
  const [judge, mine] = await Promise.all([
    qemu.qemuImg(args, { cwd: theirs, expect: 'any' }),
    spindle(args, { cwd: ours, main }),
  ]);
  expectComplaint(mine);
  const told = `${mine.stderr}\n${judge.stderr}`;
  const other = [differs ?? []].flat().find(({ kinds }) => kinds.test(kind.name));
  if (other?.code !== undefined) {
    expect(mine.code, told).toBe(other.code);
    return;
  }
  expect(mine.code, told).toBe(judge.code);
  expect(mine.stderr === '', told).toBe(judge.stderr === '');
  if (judge.code !== 0 && judge.stderr !== '') return;
  const shown = other === undefined ? judge.stdout : byFile(judge.stdout);
  expect(said(mine.stdout)).toEqual(said(shown));
  await expectSameResult(ours, theirs);
}

/** With the file instead of a description, in text and in JSON. */
function byFile(stdout: string): string {
  return stdout
    .replace(/"json:\{.*?\\"filename\\": \\"(.*?)\\".*\}"/g, '"$1"')
    .replace(/json:\{.*?"filename": "(.*?)".*\}/g, '$1');
}

/** Does a share of the lines, whatever fails, and says which did. */
async function eachLine(
  kind: Kind,
  all: readonly Line[],
  work: (line: Line) => Promise<void>,
): Promise<void> {
  const failures: string[] = [];
  const wanted = all.filter(({ only }) => only?.(kind) !== false);
  for (const line of shareOf(`${kind.name} ${all[0]?.line ?? ''}`, wanted)) {
    await work(line).catch((error: unknown) => failures.push(`${line.line}\n${String(error)}`));
  }
  expect(failures.length, failures.join('\n\n')).toBe(0);
}

qemu.describeWithQemu('beside qemu-img, each kind', () => {
  describe.each(EVERY_KIND.map((kind) => ({ name: kind.name, kind })))('$name', ({ kind }) => {
    let ours = '';
    let theirs = '';
    let master = '';
    beforeAll(async () => {
      master = await studio(kind);
      [ours, theirs] = [copyOf(master), copyOf(master)];
    });

    it.each(Object.keys(READING))('%s', async (group) => {
      await eachLine(kind, READING[group] ?? [], async (line) => {
        try {
          await beside(kind, line, ours, theirs);
        } finally {
          for (const folder of [ours, theirs])
            for (const name of readdirSync(folder)) if (name.startsWith('x')) rmSync(join(folder, name));
        }
      });
    });

    it.each(Object.keys(WRITING))('%s', async (group) => {
      await eachLine(kind, WRITING[group] ?? [], async (line) => {
        const [mine, other] = [copyOf(master), copyOf(master)];
        try {
          await beside(kind, line, mine, other);
        } finally {
          for (const folder of [mine, other]) rmSync(folder, { recursive: true });
        }
      });
    });
  });
});
