// The README's example of a compressed image that is written as its disk streams in, run as it stands there.
import { execFileSync } from 'node:child_process';
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import ts from 'typescript';
import { beforeAll, expect, it } from 'vitest';
import { builtCli, MAIN } from '../tool/cli.ts';
import { CODECS, content } from '../tool/compressed.ts';
import * as qemu from '../tool/qemu.ts';
import { withRandom } from '../tool/random.ts';
import { tempDir } from '../tool/temp.ts';

const INDEX = pathToFileURL(join(MAIN, '..', '..', 'index.js')).href;

function example(): string {
  const readme = readFileSync(new URL('../../README.md', import.meta.url), 'utf8');
  const found = [...readme.matchAll(/```ts\n([\s\S]*?)```/g)].find(([, code]) =>
    code?.includes('writeCompressed'),
  );
  if (found?.[1] === undefined) throw new Error('the README does not show compressed writes');
  return found[1];
}

qemu.describeWithQemu('a compressed image that is streamed', () => {
  beforeAll(builtCli, 120_000);

  it.each(CODECS)('%s: the example of the README makes what qemu reads the same', async (codec) => {
    await withRandom(`streamed ${codec}`, async (random) => {
      const cwd = tempDir();
      const size = 5 * 1024 * 1024 + 3 * 512;
      const disk = content(random, size, 0.3);
      // Holes, whole chunks and parts of them; and what does not become smaller.
      disk.fill(0, 1_000_000, 1_400_000);
      disk.fill(0, 2 * 1024 * 1024, 4 * 1024 * 1024);
      disk.set(random.bytes(200_000), 300_000);
      writeFileSync(join(cwd, 'disk.raw'), disk);
      const source = example()
        .replace("'spindle'", JSON.stringify(INDEX))
        .replace("'zstd'", JSON.stringify(codec));
      const compilerOptions = { module: ts.ModuleKind.ESNext, target: ts.ScriptTarget.ES2022 };
      const { outputText } = ts.transpileModule(source, { compilerOptions });
      writeFileSync(join(cwd, 'example.mjs'), outputText);
      execFileSync(process.execPath, ['example.mjs'], { cwd });
      const packed = join(cwd, 'packed.qcow2');
      const checked = await qemu.check(packed);
      expect(checked.code).toBe(0);
      expect(checked.json?.['compressed-clusters']).toBeGreaterThan(30);
      expect(readFileSync(packed).length).toBeLessThan(size / 2);
      const same = { path: join(cwd, 'disk.raw'), format: 'raw' };
      expect(await qemu.compare({ path: packed, format: 'qcow2' }, same)).toBe(true);
      const info = (await qemu.info(packed)) as {
        'format-specific': { data: { 'compression-type': string } };
      };
      expect(info['format-specific'].data['compression-type']).toBe(codec);
    });
  });
});
