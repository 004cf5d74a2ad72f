import { spawnSync } from 'node:child_process';
import { copyFileSync, cpSync, mkdirSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath, pathToFileURL } from 'node:url';
import { describe, expect, it } from 'vitest';
import { addonStatus } from '../../src/native/binding.ts';
import { addonHere, scratch } from './help.ts';

const root = fileURLToPath(new URL('../../', import.meta.url));

/** addonStatus and the kind of native() in a process of its own, from the binding in `folder`. */
function statusIn(
  folder: string,
  env: Record<string, string> = {},
): { kind: string; status: { loaded: boolean; reason?: string } } {
  const url = pathToFileURL(join(folder, 'src/native/binding.ts')).href;
  const script = `import(${JSON.stringify(url)}).then((b) =>
    console.log(JSON.stringify({ kind: b.native().kind, status: b.addonStatus() })));`;
  const done = spawnSync(process.execPath, ['--import', 'tsx', '-e', script], {
    cwd: root,
    encoding: 'utf8',
    env: { ...process.env, SPINDLE_ADDON: '', ...env },
  });
  expect(done.stderr).not.toMatch(/Error/);
  return JSON.parse(done.stdout) as ReturnType<typeof statusIn>;
}

describe('the binding', () => {
  const folder = scratch().path('project');
  cpSync(join(root, 'src'), join(folder, 'src'), { recursive: true });
  mkdirSync(join(folder, 'native'), { recursive: true });
  writeFileSync(join(folder, 'package.json'), '{ "type": "module" }');
  const file = join(folder, 'native', `spindle.${process.platform}-${process.arch}-gnu.node`);

  it('says that nothing was built, and runs on the twins', () => {
    const { kind, status } = statusIn(folder);
    expect(kind).toBe('twin');
    expect(status).toEqual({
      loaded: false,
      reason: expect.stringContaining('no addon was built') as string,
    });
  });

  it('says what is wrong with a broken file, and runs on the twins', () => {
    writeFileSync(file, 'not a shared object');
    const { kind, status } = statusIn(folder);
    expect(kind).toBe('twin');
    expect(status.reason).toContain(file);
    rmSync(file);
  });

  it.runIf(addonHere)('tries the next file when one does not load', () => {
    writeFileSync(file, 'not a shared object');
    copyFileSync(addonStatus().path ?? '', file.replace('-gnu', '-musl'));
    expect(statusIn(folder).kind).toBe('addon');
  });

  it('obeys SPINDLE_ADDON=off', () => {
    const { kind, status } = statusIn(root, { SPINDLE_ADDON: 'off' });
    expect(kind).toBe('twin');
    expect(status.reason).toContain('SPINDLE_ADDON=off');
  });
});
