import { createHash } from 'node:crypto';
import { copyFileSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { beforeAll, describe, expect, it } from 'vitest';
import { planCommit, planRebase } from '../../src/op/chain-plan.ts';
import { commit } from '../../src/op/commit.ts';
import { create } from '../../src/op/create.ts';
import { openImageFile } from '../../src/op/open.ts';
import { rebase } from '../../src/op/rebase.ts';
import { builtCli, spindle } from '../tool/cli.ts';
import { tempDir } from '../tool/temp.ts';

const MIB = 1024 ** 2;

const hashOf = (path: string): string => createHash('sha256').update(readFileSync(path)).digest('hex');

/** base (8 MiB, data in the first 4), other (as base but for 1 MiB), top (16 MiB: data in 1 MiB, zeroes in 1). */
async function chain(): Promise<{ dir: string; base: string; other: string; top: string }> {
  const dir = tempDir();
  const [base, other, top] = ['base.qcow2', 'other.qcow2', 'top.qcow2'].map((name) => join(dir, name)) as [
    string,
    string,
    string,
  ];
  await create({ path: base, format: 'qcow2', size: 8 * MIB });
  let image = await openImageFile(base, { write: true });
  await image.write(new Uint8Array(4 * MIB).fill(1), 0);
  await image.close();
  copyFileSync(base, other);
  image = await openImageFile(other, { write: true });
  await image.write(new Uint8Array(MIB).fill(2), 2 * MIB);
  await image.close();
  await create({ path: top, format: 'qcow2', size: 16 * MIB, backing: { name: base, format: 'qcow2' } });
  image = await openImageFile(top, { write: true });
  await image.write(new Uint8Array(MIB).fill(3), MIB);
  await image.zero(0, MIB);
  await image.close();
  return { dir, base, other, top };
}

describe('the plan', () => {
  beforeAll(builtCli);

  it('of a commit is what the commit does', async () => {
    const { base, other, top } = await chain();
    const before = [base, other, top].map(hashOf);
    const plan = await planCommit(top);
    expect(plan).toEqual({
      ...{ base, from: 8 * MIB, size: 16 * MIB },
      ...{ read: MIB, zero: MIB, absent: 14 * MIB },
    });
    expect([base, other, top].map(hashOf)).toEqual(before);
    const done = await commit(top);
    expect([done.written + done.shared, done.zero, done.size]).toEqual([plan.read, plan.zero, plan.size]);
  });

  it('of a rebase bounds what the rebase copies', async () => {
    const { base, other, top } = await chain();
    const before = [base, other, top].map(hashOf);
    const to = { name: other, format: 'qcow2' };
    const plan = await planRebase(top, to);
    // 1 MiB is hidden by the data of the top, 1 MiB by its zeroes; the rest of the data may differ.
    expect(plan).toEqual({ before: base, size: 16 * MIB, compared: 2 * MIB });
    expect(await planRebase(top, to, { unsafe: true })).toMatchObject({ compared: 0 });
    expect(await planRebase(top, { name: base, format: 'qcow2' })).toMatchObject({ compared: 0 });
    expect([base, other, top].map(hashOf)).toEqual(before);
    const done = await rebase(top, to);
    expect(done.copied).toBe(MIB);
    expect(done.copied + done.zeroed).toBeLessThanOrEqual(plan.compared);
  });

  it('of what cannot be is the same error', async () => {
    const { dir, base, top } = await chain();
    await expect(planCommit(base)).rejects.toMatchObject({ code: 'UNSUPPORTED', path: base });
    await expect(planCommit(top, { base: join(dir, 'absent') })).rejects.toMatchObject({
      code: 'BAD_OPTION',
    });
    await expect(planRebase(top, { name: 'absent', format: 'raw' })).rejects.toMatchObject({
      code: 'BACKING_NOT_FOUND',
    });
    await expect(planRebase(base, { name: top, format: 'qcow2' })).rejects.toMatchObject({
      code: 'BACKING_LOOP',
    });
  });

  it('is told on the command line, and nothing is changed', async () => {
    const { dir: cwd, base, top } = await chain();
    const before = [base, top].map(hashOf);
    const committed = await spindle(['commit', '--plan', 'top.qcow2'], { cwd });
    expect(committed.stdout).toContain('grows from 8 MiB to 16 MiB');
    expect(committed.stdout).toContain('read and written: 1 MiB (1048576 bytes)');
    const json = await spindle(['commit', '--plan', '--output', 'json', 'top.qcow2'], { cwd });
    expect(JSON.parse(json.stdout)).toMatchObject({ read: MIB, absent: 14 * MIB });
    const args = ['rebase', '--plan', '-b', 'other.qcow2', '-F', 'qcow2', 'top.qcow2'];
    expect((await spindle(args, { cwd })).stdout).toContain('2 MiB (2097152 bytes)');
    expect(JSON.parse((await spindle([...args, '--output', 'json'], { cwd })).stdout)).toMatchObject({
      compared: 2 * MIB,
    });
    expect([base, top].map(hashOf)).toEqual(before);
  });
});
