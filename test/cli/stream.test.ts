import { spawn } from 'node:child_process';
import { createHash } from 'node:crypto';
import { readdirSync, readFileSync, statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { create } from '../../src/op/create.ts';
import { openImageFile } from '../../src/op/open.ts';
import { MAIN, spindle } from '../tool/cli.ts';
import * as qemu from '../tool/qemu.ts';
import { Random, seedOf } from '../tool/random.ts';
import { tempDir } from '../tool/temp.ts';

const SIZE = 5 * 1024 ** 2 + 1536;
const sha256 = (path: string): string => createHash('sha256').update(readFileSync(path)).digest('hex');

/** Runs a line of shell in which `$S` is spindle. */
function shell(
  line: string,
  cwd: string,
  env: Record<string, string> = {},
): Promise<{ code: number; stderr: string }> {
  return new Promise((resolve, reject) => {
    const child = spawn('sh', ['-c', line], {
      cwd,
      stdio: ['ignore', 'ignore', 'pipe'],
      env: { ...process.env, S: `${process.execPath} ${MAIN}`, ...env },
    });
    let stderr = '';
    child.stderr.setEncoding('utf8').on('data', (text: string) => (stderr += text));
    child.on('error', reject);
    child.on('close', (code) => {
      resolve({ code: code ?? -1, stderr });
    });
  });
}

/** A folder with a raw image, and the same disk as qcow2. */
async function images(): Promise<string> {
  const dir = tempDir();
  const random = new Random(seedOf('streams'));
  for (const format of ['raw', 'qcow2'])
    await create({ path: join(dir, `disk.${format}`), format, size: SIZE });
  const parts = [
    [0, 4096],
    [700_000, 90_000],
    [3 * 1024 ** 2, 1024 ** 2],
    [SIZE - 1000, 1000],
  ] as const;
  for (const [at, length] of parts) {
    const bytes = random.bytes(length);
    for (const format of ['raw', 'qcow2']) {
      const image = await openImageFile(join(dir, `disk.${format}`), { format, write: true });
      await image.write(bytes, at);
      await image.close();
    }
  }
  return dir;
}

qemu.describeWithQemu('convert through pipes', () => {
  const OPTIONS = [
    '',
    '-o cluster_size=512',
    '-o cluster_size=2M',
    '-o compat=0.10',
    '-o extended_l2=on',
    '-c',
    '-o preallocation=metadata',
  ];

  for (const source of ['raw', 'qcow2']) {
    for (const target of ['raw', 'qcow2']) {
      for (const options of target === 'raw' ? [''] : OPTIONS) {
        it(`${source} to ${target} ${options}: out of a pipe, into one, and both`, async () => {
          const dir = await images();
          const lines = [
            `$S convert -f ${source} -O ${target} ${options} disk.${source} - | cat > out`,
            `cat disk.${source} | $S convert -f ${source} -O ${target} ${options} - out`,
            `cat disk.${source} | $S convert -f ${source} -O ${target} ${options} - - | cat > out`,
          ];
          for (const line of lines) {
            expect(await shell(line, dir), line).toEqual({ code: 0, stderr: '' });
            const out = join(dir, 'out');
            const disk = { path: join(dir, 'disk.raw'), format: 'raw' };
            expect(await qemu.compare(disk, { path: out, format: target }, { strict: false }), line).toBe(
              true,
            );
            if (target === 'qcow2') expect((await qemu.check(out)).code, line).toBe(0);
            else expect(sha256(out)).toBe(sha256(disk.path));
            const first = sha256(out);
            expect((await shell(line, dir)).code).toBe(0);
            expect(sha256(out), `${line}: the same bytes again`).toBe(first);
          }
        });
      }
    }
  }

  it('an overlay goes through a pipe with the name of its base', async () => {
    const dir = await images();
    await qemu.create(join(dir, 'top.qcow2'), undefined, {
      backing: { path: 'disk.raw', format: 'raw' },
      cwd: dir,
    });
    await qemu.fill(join(dir, 'top.qcow2'), [{ do: 'write', at: 1024 ** 2, length: 512, pattern: 7 }]);
    const line = '$S convert -O qcow2 -B disk.raw -F raw top.qcow2 - | cat > out.qcow2';
    expect(await shell(line, dir)).toEqual({ code: 0, stderr: '' });
    const [top, out] = ['top.qcow2', 'out.qcow2'].map((name) => ({ path: join(dir, name), format: 'qcow2' }));
    expect(await qemu.compare(top!, out!)).toBe(true);
    expect((await qemu.check(out!.path)).json?.['allocated-clusters']).toBe(1);
  });

  it('the format of a stream is told by its first bytes', async () => {
    const dir = await images();
    expect(await shell('cat disk.qcow2 | $S convert -O raw - out', dir)).toEqual({ code: 0, stderr: '' });
    expect(sha256(join(dir, 'out'))).toBe(sha256(join(dir, 'disk.raw')));
  });
});

describe('pipes', () => {
  it('a reader that goes away ends the work in silence, and no file stays', async () => {
    const dir = await images();
    for (const options of ['', '-c']) {
      const line = `$S convert -O qcow2 ${options} disk.raw - | head -c 1000 > out`;
      expect(await shell(line, dir, { TMPDIR: dir })).toEqual({ code: 0, stderr: '' });
      expect(statSync(join(dir, 'out')).size).toBe(1000);
      expect(readdirSync(dir).sort()).toEqual(['disk.qcow2', 'disk.raw', 'out']);
    }
  });

  it('a stream that is cut or empty is a short disk, never a hang', async () => {
    const dir = tempDir();
    expect(await shell('printf 12345 | $S convert -O raw - out', dir)).toEqual({ code: 0, stderr: '' });
    expect(readFileSync(join(dir, 'out'))).toEqual(Buffer.concat([Buffer.from('12345'), Buffer.alloc(507)]));
    expect(await shell('$S convert -O raw - out < /dev/null', dir)).toEqual({ code: 0, stderr: '' });
    expect(statSync(join(dir, 'out')).size).toBe(0);
  });

  it('what cannot be is refused in one line', async () => {
    const dir = tempDir();
    writeFileSync(join(dir, 'a'), Buffer.alloc(512));
    const data = await spindle(['convert', '-O', 'qcow2', '-o', 'data_file=d', 'a', '-'], { cwd: dir });
    expect(data).toMatchObject({ code: 1, stdout: '' });
    expect(data.stderr).toMatch(/^spindle: .*two files.*\n$/);
    const several = await shell('cat a | $S convert -O raw - a out', dir);
    expect(several).toMatchObject({ code: 1 });
    expect(readdirSync(dir)).toEqual(['a']);
  });
});
