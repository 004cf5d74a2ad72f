import { readdirSync, readFileSync, readlinkSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect, it } from 'vitest';
import { convert } from '../../src/op/convert.ts';
import { convertFromStream } from '../../src/op/convert-stream.ts';
import { addonHere } from '../native/help.ts';
import * as qemu from '../tool/qemu.ts';
import { Random } from '../tool/random.ts';
import { tempDir } from '../tool/temp.ts';

const O_DIRECT = 0o40000;

/** Whether this process writes with O_DIRECT to a file in `dir`; undefined where it writes none. */
function writesDirectly(dir: string): boolean | undefined {
  for (const fd of readdirSync('/proc/self/fd')) {
    try {
      if (!readlinkSync(`/proc/self/fd/${fd}`).startsWith(dir)) continue;
      const [, octal = '0'] = /^flags:\s*(\d+)/m.exec(readFileSync(`/proc/self/fdinfo/${fd}`, 'utf8')) ?? [];
      const flags = parseInt(octal, 8);
      if ((flags & 3) === 2) return (flags & O_DIRECT) !== 0;
    } catch {
      continue;
    }
  }
  return undefined;
}

qemu.describeWithQemu('convert past the page cache', () => {
  it.runIf(addonHere).each(['raw', 'qcow2'])('into a new %s image', async (format) => {
    const dir = tempDir();
    const into = tempDir();
    const source = join(dir, 'disk.raw');
    // No multiple of anything but of sectors.
    const bytes = new Random(1).bytes(5 * 1024 ** 2 + 1536);
    writeFileSync(source, bytes);
    for (const direct of [true, false]) {
      const seen = new Set<boolean | undefined>();
      const onProgress = (): void => void seen.add(writesDirectly(into));
      const path = join(into, `new.${String(direct)}`);
      await convert(
        [{ path: source, format: 'raw' }],
        { path, format, direct },
        { share: false, onProgress },
      );
      expect([...seen]).toEqual([direct]);
      expect(await qemu.compare({ path, format }, { path: source, format: 'raw' })).toBe(true);
      const piped = join(into, `piped.${String(direct)}`);
      async function* stream(): AsyncGenerator<Uint8Array> {
        for (let at = 0; at < bytes.length; at += 70_001) {
          yield bytes.subarray(at, at + 70_001);
          seen.add(writesDirectly(into));
          await Promise.resolve();
        }
      }
      await convertFromStream(stream(), { path: piped, format, direct });
      expect([...seen]).toEqual([direct]);
      expect(await qemu.compare({ path: piped, format }, { path: source, format: 'raw' })).toBe(true);
    }
  });
});
