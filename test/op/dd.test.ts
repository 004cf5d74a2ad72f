import { existsSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { dd } from '../../src/op/dd.ts';
import { secretOf } from '../../src/op/open.ts';
import { PASSPHRASE } from '../tool/encrypted.ts';
import { imageOpts, KINDS, randomContent, SECRET_OBJECT } from '../tool/kinds.ts';
import * as qemu from '../tool/qemu.ts';
import { Random, seedOf } from '../tool/random.ts';
import { tempDir } from '../tool/temp.ts';

qemu.describeWithQemu('dd, as qemu-img does', () => {
  for (const kind of KINDS) {
    it(`${kind.name}: any part of it`, { timeout: 300_000 }, async () => {
      const dir = tempDir();
      const random = new Random(seedOf(`dd ${kind.name}`));
      const from = join(dir, 'from');
      const size = random.between(2000, 6000) * 512;
      await kind.make(from, size, randomContent(random, size, 10));
      // Stretching passphrases takes its time.
      for (let round = 0; round < (kind.encrypted === true ? 4 : 12); round++) {
        const format = random.pick(['raw', 'qcow2'] as const);
        const blockSize = random.pick([512, 1000, 4096, 65_536, 1024 ** 2, random.between(1, 3_000_000)]);
        const blocks = Math.ceil(size / blockSize);
        const count = random.chance(0.6) ? random.below(blocks + 3) : undefined;
        const skip = random.chance(0.6) ? random.below(blocks + 2) : undefined;
        const where = `${kind.name}: ${format} bs=${String(blockSize)} count=${String(count)} skip=${String(skip)} (SPINDLE_SEED=${String(random.seed)})`;
        const [ours, theirs] = [join(dir, 'ours'), join(dir, 'theirs')];
        const { stderr } = await qemu.qemuImg([
          ...['dd', '--object', SECRET_OBJECT, '--image-opts', '-O', format, `bs=${String(blockSize)}`],
          ...(count === undefined ? [] : [`count=${String(count)}`]),
          ...(skip === undefined ? [] : [`skip=${String(skip)}`]),
          ...[`if=${imageOpts(kind, from)}`, `of=${theirs}`],
        ]);
        let beyond = false;
        const made = await dd(
          { path: from, format: kind.format, secret: secretOf(PASSPHRASE) },
          { path: ours, format, lasting: false },
          { blockSize, count, skip, onBeyond: () => (beyond = true) },
        );
        expect(beyond, where).toBe(stderr.includes('cannot skip'));
        const info = (await qemu.info(theirs, { format })) as { 'virtual-size': number };
        expect(made.size, where).toBe(info['virtual-size']);
        if (format === 'raw') expect(readFileSync(ours).equals(readFileSync(theirs)), where).toBe(true);
        else {
          const [a, b] = [
            { path: ours, format },
            { path: theirs, format },
          ];
          expect(await qemu.compare(a, b), where).toBe(true);
          expect((await qemu.check(ours)).code, where).toBe(0);
          expect(((await qemu.info(ours)) as typeof info)['virtual-size'], where).toBe(info['virtual-size']);
        }
        rmSync(ours);
        rmSync(theirs);
      }
    });
  }
});

describe('dd', () => {
  it('leaves what is there alone when it fails', async () => {
    const dir = tempDir();
    const [from, to] = [join(dir, 'from'), join(dir, 'to')];
    writeFileSync(from, Buffer.alloc(1024 ** 2, 1));
    writeFileSync(to, 'precious');
    const before = readdirSync(dir).sort();
    const failing = [
      dd({ path: join(dir, 'absent') }, { path: to }),
      dd({ path: from, format: 'qcow2' }, { path: to }),
      dd({ path: from }, { path: to, format: 'luks' }),
      dd({ path: from }, { path: to, format: 'vmdk' }),
      dd({ path: from }, { path: to }, { blockSize: 0 }),
      dd({ path: from }, { path: to }, { blockSize: 2 ** 31 }),
      dd({ path: from }, { path: to }, { count: -1 }),
      dd({ path: from }, { path: to }, { skip: NaN }),
      dd({ path: from }, { path: to }, { signal: AbortSignal.abort() }),
    ];
    for (const result of await Promise.allSettled(failing)) expect(result.status).toBe('rejected');
    expect(readFileSync(to, 'utf8')).toBe('precious');
    expect(readdirSync(dir).sort()).toEqual(before);
    await dd({ path: from, format: 'raw' }, { path: to }, { skip: 2047 });
    expect(readFileSync(to).equals(Buffer.alloc(512, 1))).toBe(true);
  });

  it('does not write over what it reads', async () => {
    const dir = tempDir();
    const path = join(dir, 'image');
    const bytes = Buffer.from(new Random(seedOf('dd same')).bytes(10_000));
    writeFileSync(path, bytes);
    await expect(dd({ path, format: 'raw' }, { path: `${dir}/./image` })).rejects.toMatchObject({
      code: 'BAD_OPTION',
    });
    expect(readFileSync(path).equals(bytes)).toBe(true);
  });

  it('takes numbers past every disk', async () => {
    const dir = tempDir();
    const [from, to] = [join(dir, 'from'), join(dir, 'to')];
    writeFileSync(from, Buffer.alloc(5120, 1));
    const all = { blockSize: 2 ** 31 - 1, count: 2 ** 62 };
    expect((await dd({ path: from, format: 'raw' }, { path: to }, all)).size).toBe(5120);
    let beyond = false;
    const none = { blockSize: 2 ** 31 - 1, skip: 2 ** 62, onBeyond: () => (beyond = true) };
    expect((await dd({ path: from, format: 'raw' }, { path: to }, none)).size).toBe(0);
    expect(beyond).toBe(true);
    expect(existsSync(to)).toBe(true);
  });
});
