// info, map, check and snapshot print what qemu-img prints.
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { rm } from 'node:fs/promises';
import { builtCli, spindle } from '../tool/cli.ts';
import { fixtureJson, stageFixtures, type Fixture, type GoodFixture } from '../tool/fixtures.ts';
import * as qemu from '../tool/qemu.ts';
import { tempDir } from '../tool/temp.ts';

const good = fixtureJson<GoodFixture[]>('good', 'index.json');
const damaged = fixtureJson<Fixture[]>('check', 'index.json');
let stage = '';

beforeAll(async () => {
  await builtCli();
  stage = await stageFixtures(['good', 'check']);
}, 120_000);

afterAll(() => rm(stage, { recursive: true, force: true }));

qemu.describeWithQemu('like qemu-img, on the fixtures', () => {
  describe.concurrent.each(good.map((entry) => [entry.file, entry] as const))('%s', (file, entry) => {
    const { format } = entry;
    const both = async (args: readonly string[]) => {
      const cwd = join(stage, 'good');
      const expected = await qemu.qemuImg([...args, file], { cwd, expect: 'any' });
      return { expected, ours: await spindle([...args, file], { cwd }) };
    };

    it('info, for people', async () => {
      const { expected, ours } = await both(['info', '-f', format]);
      expect(ours.code).toBe(expected.code);
      expect(ours.stdout.replace(/^Allocation: .*\n( {4}.*\n)*/m, '')).toBe(expected.stdout);
    });

    // All of them are compared in test/differential; here it is about the printing.
    it.runIf(/^(v|chain|luks|data-file|snapshots)/.test(file))('info, JSON', async () => {
      const { expected, ours } = await both(['info', '--output=json', '-f', format]);
      const { allocation, ...rest } = JSON.parse(ours.stdout) as Record<string, unknown>;
      expect(rest).toEqual(JSON.parse(expected.stdout));
      if (file === 'v3.qcow2') expect(allocation).toMatchObject({ policy: 'thin' });
    });

    it('map', async () => {
      const { expected, ours } = await both(['map', '--output=json', '-f', format]);
      // Without the secret qemu opens nothing; the tables are not encrypted.
      if (/key-secret/.test(expected.stderr)) return;
      expect(ours.stderr).toBe('');
      expect(ours.stdout).toBe(expected.stdout);
      const table = await both(['map', '-f', format]);
      expect([table.ours.code, table.ours.code === 0 ? table.ours.stdout : '']).toEqual([
        table.expected.code,
        table.expected.code === 0 ? table.expected.stdout : '',
      ]);
    });

    it.runIf(entry.snapshots === true || file === 'v3.qcow2')('snapshot -l', async () => {
      const { expected, ours } = await both(['snapshot', '-l', '-f', format]);
      if (/key-secret|Could not open/.test(expected.stderr)) return;
      expect(ours).toMatchObject({ code: expected.code, stdout: expected.stdout });
    });

    it('check', async () => {
      const { expected, ours } = await both(['check', '-f', format]);
      if (/key-secret|Could not open/.test(expected.stderr)) return;
      expect(ours.code).toBe(expected.code);
      if (expected.code === 0) expect(ours.stdout).toBe(expected.stdout);
    });
  });

  it('follows a backing chain', async () => {
    const cwd = join(stage, 'good');
    const args = ['info', '--backing-chain', '--output=json', 'chain-top.qcow2'];
    const expected = await qemu.qemuImg(args, { cwd });
    const ours = await spindle([...args, '--no-allocation'], { cwd });
    expect(JSON.parse(ours.stdout)).toEqual(JSON.parse(expected.stdout));
    const text = await qemu.qemuImg(['info', '-b', 'chain-top.qcow2'], { cwd, expect: 'any' });
    if (text.code !== 0) return; // upstream's parser has no -b here
    expect((await spindle(['info', '-b', '--no-allocation', 'chain-top.qcow2'], { cwd })).stdout).toBe(
      text.stdout,
    );
  });

  it('maps a part', async () => {
    const cwd = join(stage, 'good');
    const args = ['map', '--output=json', '--start-offset', '4k', '--max-length', '100k', 'v3.qcow2'];
    const expected = await qemu.qemuImg(args, { cwd });
    expect((await spindle(args, { cwd })).stdout).toBe(expected.stdout);
    const short = await spindle(['map', '--output', 'json', '-s', '4k', '-l', '100k', 'v3.qcow2'], { cwd });
    expect(short.stdout).toBe(expected.stdout);
  });
});

describe('check', () => {
  it.concurrent.each(damaged.map((entry) => [entry.file] as const))(
    '%s: a verdict in both forms',
    async (file) => {
      const cwd = join(stage, 'check');
      const human = await spindle(['check', file], { cwd });
      const json = await spindle(['check', '--output=json', file], { cwd });
      expect(human.code).toBe(json.code);
      const counts = JSON.parse(json.stdout) as qemu.CheckJson;
      expect(counts).toMatchObject({ filename: file, format: 'qcow2' });
      expect(/^No errors were found on the image\.$/m.test(human.stdout)).toBe(human.code === 0);
      if (counts.corruptions !== undefined) {
        expect(human.stdout).toContain(`${String(counts.corruptions)} errors were found on the image.\n`);
      }
      if (counts.leaks !== undefined) {
        expect(human.stdout).toContain(`${String(counts.leaks)} leaked clusters were found on the image.\n`);
      }
      expect(await spindle(['check', '-q', file], { cwd })).toMatchObject({ code: human.code, stdout: '' });
    },
  );

  it('has a code of its own for raw', async () => {
    const cwd = join(stage, 'good');
    expect(await spindle(['check', 'raw-1000.raw'], { cwd })).toMatchObject({ code: 63, stdout: '' });
  });
});

describe('spindle shows more', () => {
  it('in map --host', async () => {
    const cwd = tempDir();
    await spindle(['create', '-f', 'qcow2', '--allocation', 'thick-lazy', 'x', '1M'], { cwd });
    const { stdout } = await spindle(['map', '--host', '--output', 'json', 'x'], { cwd });
    expect(JSON.parse(stdout)).toMatchObject([{ start: 0, host: 'unwritten', shared: false }]);
    expect((await spindle(['map', '--host', 'x'], { cwd })).stdout).toMatch(
      /^0 +0x100000 +0x\w+ +unwritten +x$/m,
    );
  });

  it('names the policy', async () => {
    const cwd = tempDir();
    await spindle(['create', '--allocation', 'thick-eager', 'x', '1M'], { cwd });
    const { stdout } = await spindle(['info', 'x'], { cwd });
    expect(stdout).toMatch(
      /^Allocation: thick-eager \(.*\)\n {4}written: 1 MiB \(1048576 bytes, 100\.0%\)\n$/m,
    );
    expect((await spindle(['info', '--no-allocation', 'x'], { cwd })).stdout).not.toContain('Allocation');
  });

  it('takes simple image options', async () => {
    const cwd = join(stage, 'good');
    const { stdout, code } = await spindle(['info', '--image-opts', 'driver=qcow2,file.filename=v3.qcow2'], {
      cwd,
    });
    expect(code).toBe(0);
    expect(stdout).toMatch(/^image: v3\.qcow2\nfile format: qcow2\n/);
  });

  it('does not let a name in an image steer the terminal', async () => {
    const cwd = tempDir();
    await spindle(['create', '-f', 'qcow2', '-u', '-b', 'a\u001b[2Jb', '-F', 'raw', 'x', '1M'], { cwd });
    const { stdout } = await spindle(['info', 'x'], { cwd });
    expect(stdout).toContain('backing file: a\\x1b[2Jb\n');
    expect(readFileSync(join(cwd, 'x')).includes('\u001b[2J')).toBe(true);
  });
});
