// The package as others get it: packed, installed beside a program of theirs, compiled against its types, and run.
import { execFileSync } from 'node:child_process';
import { existsSync, mkdirSync, readFileSync, symlinkSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { beforeAll, describe, expect, it } from 'vitest';
import { builtCli } from '../tool/cli.ts';
import { tempDir } from '../tool/temp.ts';

const ROOT = fileURLToPath(new URL('../../', import.meta.url));

interface Manifest {
  readonly exports: Record<string, unknown>;
  readonly bin: Record<string, string>;
  readonly dependencies: Record<string, string>;
  readonly optionalDependencies: Record<string, string>;
}

const manifest = JSON.parse(readFileSync(join(ROOT, 'package.json'), 'utf8')) as Manifest;

/** The library example of the README, which is thereby true. */
function readmeExample(): string {
  const readme = readFileSync(join(ROOT, 'README.md'), 'utf8');
  const found = /```ts\n([\s\S]*?)```/.exec(readme)?.[1];
  if (found === undefined) throw new Error('the README has no TypeScript example');
  return found;
}

describe('the package', () => {
  let consumer = '';

  beforeAll(async () => {
    await builtCli();
    consumer = tempDir();
    const packed = execFileSync('npm', ['pack', '--silent', '--pack-destination', consumer], {
      cwd: ROOT,
      encoding: 'utf8',
    });
    const modules = join(consumer, 'node_modules');
    mkdirSync(join(modules, 'spindle'), { recursive: true });
    const archive = join(consumer, packed.trim().split('\n').pop() ?? '');
    execFileSync('tar', ['-xzf', archive, '--strip-components=1', '-C', join(modules, 'spindle')]);
    for (const name of [
      ...Object.keys({ ...manifest.dependencies, ...manifest.optionalDependencies }),
      '@types',
    ]) {
      if (!existsSync(join(ROOT, 'node_modules', name))) continue;
      mkdirSync(dirname(join(modules, name)), { recursive: true });
      symlinkSync(join(ROOT, 'node_modules', name), join(modules, name));
    }
    writeFileSync(join(consumer, 'package.json'), JSON.stringify({ type: 'module' }));
    writeFileSync(join(consumer, 'example.ts'), readmeExample());
    const compilerOptions = {
      ...{ module: 'NodeNext', target: 'ES2023', lib: ['ES2023', 'DOM'], strict: true, types: ['node'] },
      ...{ exactOptionalPropertyTypes: true, noUncheckedIndexedAccess: true },
    };
    writeFileSync(
      join(consumer, 'tsconfig.json'),
      JSON.stringify({ compilerOptions, files: ['example.ts'] }),
    );
  });

  it('compiles against its own types, without leave to skip them', () => {
    const compiler = join(ROOT, 'node_modules', 'typescript', 'bin', 'tsc');
    const done = execFileSync(process.execPath, [compiler, '-p', consumer], { encoding: 'utf8' });
    expect(done).toBe('');
  });

  it('runs the example of the README', () => {
    const printed = execFileSync(process.execPath, ['example.js'], { cwd: consumer, encoding: 'utf8' });
    expect(printed).toBe('1073741824 thick-lazy\n');
    execFileSync('rm', ['-f', join(consumer, 'disk.qcow2')]);
  });

  it('brings the command line', () => {
    const bin = join(consumer, 'node_modules', 'spindle', manifest.bin['spindle'] ?? '');
    expect(execFileSync(process.execPath, [bin, '--version'], { encoding: 'utf8' })).toContain('0.1.0');
    expect(execFileSync(process.execPath, [bin, 'info', '--help'], { encoding: 'utf8' })).toContain('Usage');
  });

  it('keeps its insides to itself', () => {
    const source =
      "import('spindle/dist/core/lru.js').then(() => process.exit(1), (e) => console.log(e.code))";
    expect(execFileSync(process.execPath, ['-e', source], { cwd: consumer, encoding: 'utf8' })).toBe(
      'ERR_PACKAGE_PATH_NOT_EXPORTED\n',
    );
  });
});

describe('the lock file', () => {
  it('names no registry', () => {
    const lock = readFileSync(join(ROOT, 'package-lock.json'), 'utf8');
    expect(lock.includes('"resolved": "http')).toBe(false);
  });
});
