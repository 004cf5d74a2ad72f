// Called as qemu-img, beside the real one: block devices, and images that another program holds.
import { execFileSync } from 'node:child_process';
import { readFileSync, rmSync, symlinkSync } from 'node:fs';
import { join } from 'node:path';
import { beforeAll, describe, expect, it } from 'vitest';
import { expectComplaint, said } from '../tool/beside.ts';
import { builtCli, MAIN, spindle } from '../tool/cli.ts';
import { expectSameResult } from '../tool/every-kind.ts';
import { hold } from '../tool/holder.ts';
import { attachLoop, noLoop, type LoopDevice } from '../tool/loop.ts';
import * as qemu from '../tool/qemu.ts';
import { tempDir } from '../tool/temp.ts';

const MIB = 1024 ** 2;

let main = '';

beforeAll(async () => {
  await builtCli();
  main = join(tempDir(), 'qemu-img');
  symlinkSync(MAIN, main);
}, 120_000);

/** A folder with a raw and a qcow2 image of one disk. */
async function folder(): Promise<string> {
  const cwd = tempDir();
  await qemu.create('r', 2 * MIB, { format: 'raw', cwd });
  await qemu.fill('r', [{ do: 'write', at: MIB, length: 70_144, pattern: 7 }], { format: 'raw', cwd });
  await qemu.convert('r', 'q', { format: 'raw', to: 'qcow2', cwd });
  return cwd;
}

/** Runs a line with both, each in its own folder. Says whether the judge failed. */
async function beside(line: string, ours: string, theirs: string): Promise<boolean> {
  const args = line.split(' ');
  const judge = await qemu.qemuImg(args, { cwd: theirs, expect: 'any' });
  const mine = await spindle(args, { cwd: ours, main });
  const told = `${mine.stderr}\n${judge.stderr}`;
  expect(mine.code, told).toBe(judge.code);
  expectComplaint(mine);
  expect(mine.stderr === '', told).toBe(judge.stderr === '');
  if (judge.code === 0) expect(said(mine.stdout)).toEqual(said(judge.stdout));
  return judge.code !== 0 && judge.stderr !== '';
}

/** `s` is a device with the bytes of `r`, `t` one with those of `q`, `z` an empty one of 4 MiB. */
const DEVICE_LINES: readonly string[] = [
  'info -f raw s',
  'info -f raw --output=json s',
  'info --output=json t',
  'info json:{"driver":"raw","file":{"driver":"host_device","filename":"s"}}',
  'info --output=json json:{"driver":"qcow2","file":{"driver":"host_device","filename":"t"}}',
  'info --output=json --image-opts driver=raw,file.driver=host_device,file.filename=s',
  'info json:{"driver":"raw","file":{"driver":"host_device","filename":"r"}}',
  'check --output=json t',
  'map --output=json -f raw s',
  'map --output=json t',
  'measure --output=json -O qcow2 -f raw s',
  'measure --output=json -O raw t',
  'compare -f raw -F qcow2 s q',
  'compare -s -f raw -F raw s r',
  'compare -f raw -F raw z s',
  'convert -f raw s x',
  'convert -f raw -O qcow2 s x',
  'convert -f qcow2 -O qcow2 -c t x',
  'convert -f raw -t none -T none s x',
  'convert -n -f raw -O raw r z',
  'convert -f raw -O raw r z',
  'convert -f qcow2 -O raw q s',
  'convert -f raw -O qcow2 r z',
  'convert -n -f raw -O raw z s',
  'convert -n --target-is-zero -f raw -O raw r z',
  'create -f qcow2 z 2M',
  'create -f raw z 8M',
  'create -f raw z 1M',
  'dd -f raw bs=64k count=20 if=s of=x',
  'dd -f raw -O qcow2 bs=1M if=s of=x',
  'dd -f raw bs=1M if=r of=z',
  'resize -f raw s +1M',
  'resize -f raw --shrink s 1M',
  'resize -f qcow2 t +1M',
  'snapshot -l t',
  'bench -f raw -c 4 s',
  'bench -w -f raw -c 4 -t none --pattern=5 z',
];

const missing = qemu.qemuMissing() ?? noLoop();

qemu.describeUnlessMissing('beside qemu-img, on block devices', missing, () => {
  let master = '';
  beforeAll(async () => {
    master = await folder();
  });

  it.each(DEVICE_LINES)('%s', async (line) => {
    const copies = [tempDir(), tempDir()] as const;
    const used: LoopDevice[] = [];
    try {
      for (const cwd of copies) {
        execFileSync('cp', ['-a', `${master}/.`, cwd]);
        for (const [name, content] of [
          ['s', readFileSync(join(cwd, 'r'))],
          ['t', readFileSync(join(cwd, 'q'))],
          ['z', Buffer.alloc(4 * MIB)],
        ] as const) {
          const device = attachLoop(content);
          used.push(device);
          symlinkSync(device.path, join(cwd, name));
        }
      }
      if (!(await beside(line, ...copies))) await expectSameResult(...copies);
    } finally {
      for (const device of used) device.detach();
      for (const cwd of copies) rmSync(cwd, { recursive: true });
    }
  });
});

/** Both in one folder, where `q` and `r` are held. */
const HELD_LINES: readonly string[] = [
  ...['info q', 'info -U q', 'map q', 'map -U q', 'check q', 'check -U q', 'check -r all q'],
  ...['compare q r', 'compare -U q r', 'convert q x', 'convert -U q x', 'convert -n r q', 'convert r q'],
  ...['dd if=q of=x', 'dd -U if=q of=x', 'measure -O raw q', 'measure -U -O raw q', 'bench -c 1 q'],
  ...['bench -U -c 1 q', 'bench -w -c 1 q', 'snapshot -l q', 'snapshot -U -l q', 'snapshot -c a q'],
  ...['resize q +1M', 'resize -f raw r +1M', 'amend -o lazy_refcounts=on q', 'bitmap --add q b'],
  ...['rebase -u -b r -F raw q', 'create -f qcow2 q 1M', 'create -f qcow2 -b q -F qcow2 x', 'commit q'],
];

describe.each(['read', 'write'] as const)('held to %s', (use) => {
  qemu.describeWithQemu('beside qemu-img', () => {
    it.each(HELD_LINES)('%s', async (line) => {
      const copies = [await folder(), await folder()] as const;
      const holders = [];
      for (const cwd of copies) {
        for (const [name, format] of [
          ['q', 'qcow2'],
          ['r', 'raw'],
        ] as const) {
          const holder = await hold('qemu-io', join(cwd, name), format, use);
          if (typeof holder === 'string') throw new Error(holder);
          holders.push(holder);
        }
      }
      try {
        // One that writes lets qemu-img change the length of a raw image under it; ours keeps out.
        if (use === 'write' && line === 'resize -f raw r +1M')
          expect((await spindle(line.split(' '), { cwd: copies[0], main })).code).toBe(1);
        else await beside(line, ...copies);
      } finally {
        for (const holder of holders) await holder.stop();
      }
    });
  });
});
