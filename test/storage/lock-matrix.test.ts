import { spawnSync } from 'node:child_process';
import { writeFileSync } from 'node:fs';
import { expect, it } from 'vitest';
import { isSpindleError } from '../../src/core/errors.ts';
import { native } from '../../src/native/binding.ts';
import { openImageFile } from '../../src/op/open.ts';
import { hold, PROGRAMS, type Program, type Use } from '../tool/holder.ts';
import * as qemu from '../tool/qemu.ts';
import { tempPath } from '../tool/temp.ts';

/*
 * Who may open an image that somebody else has open: spindle beside each judge, in both orders. What is right is
 * measured: a judge takes the place of spindle and is used in the same way.
 */

const USES: readonly Use[] = ['read', 'write', 'snoop'];
const FORMATS = ['raw', 'qcow2'] as const;
type Format = (typeof FORMATS)[number];

/**
 * The judge that uses an image as spindle does. A raw image is written to as by a virtual machine, which lets no other
 * writer in (qemu-io would); all else as by a tool.
 */
function likeOurs(format: Format, use: Use): Program {
  return format === 'raw' && use === 'write' ? 'qemu-system-x86_64' : 'qemu-io';
}

async function image(format: Format): Promise<string> {
  const path = tempPath(format);
  if (format === 'raw') writeFileSync(path, new Uint8Array(1024 ** 2));
  else await qemu.create(path, '1M');
  return path;
}

/** Whether a judge can open the image now; it closes it again. */
async function judgeMay(program: Program, path: string, format: Format, use: Use): Promise<boolean> {
  const held = await hold(program, path, format, use);
  if (typeof held === 'string') return false;
  await held.stop();
  return true;
}

/** What spindle complains about when it opens the image, null when it can; it closes it again. */
async function ourComplaint(path: string, format: Format, use: Use): Promise<string | null> {
  try {
    const opened = await openImageFile(path, { format, write: use === 'write', share: use === 'snoop' });
    await opened.close();
    return null;
  } catch (error) {
    if (isSpindleError(error, 'IN_USE')) return error.message;
    throw error;
  }
}

function missing(): string | undefined {
  const gone = PROGRAMS.filter((program) => spawnSync(program, ['--version']).error !== undefined);
  if (gone.length > 0) return gone.join(' and ');
  return native().kind === 'addon' ? undefined : 'the addon: the twins take no locks';
}

const addon = native().kind === 'addon';
const describeMatrix = (name: string, block: () => void): void => {
  // Without the addon nothing is locked, which is no fault of the machine.
  if (addon) qemu.describeUnlessMissing(name, qemu.qemuMissing() ?? missing(), block);
  else it.skip(`${name}: needs the addon`, () => undefined);
};

describeMatrix('who may open an image, spindle beside', () => {
  for (const format of FORMATS) {
    for (const program of PROGRAMS) {
      for (const theirs of USES) {
        it(`${program} that has it open first: ${format}, ${theirs}`, { timeout: 300_000 }, async () => {
          const path = await image(format);
          const holder = await hold(program, path, format, theirs);
          if (typeof holder === 'string') throw new Error(holder);
          try {
            for (const ours of USES) {
              const expected = await judgeMay(likeOurs(format, ours), path, format, ours);
              const complaint = await ourComplaint(path, format, ours);
              expect(complaint === null, `${ours}: ${String(complaint)}`).toBe(expected);
              if (complaint === null) continue;
              // The kernel keeps 15 bytes of a program's name.
              expect(complaint).toContain(`(${program.slice(0, 15)}, pid ${String(holder.pid)})`);
              expect(complaint).toContain(path);
            }
          } finally {
            await holder.stop();
          }
          for (const ours of USES) expect(await ourComplaint(path, format, ours), ours).toBeNull();
        });
      }
    }

    for (const ours of USES) {
      it(`spindle that has it open first: ${format}, ${ours}`, { timeout: 240_000 }, async () => {
        const path = await image(format);
        const expected = new Map<string, boolean>();
        const like = await hold(likeOurs(format, ours), path, format, ours);
        if (typeof like === 'string') throw new Error(like);
        for (const program of PROGRAMS)
          for (const theirs of USES)
            expected.set(`${program} ${theirs}`, await judgeMay(program, path, format, theirs));
        await like.stop();
        const opened = await openImageFile(path, {
          format,
          write: ours === 'write',
          share: ours === 'snoop',
        });
        const found = new Map<string, boolean>();
        for (const program of PROGRAMS)
          for (const theirs of USES)
            found.set(`${program} ${theirs}`, await judgeMay(program, path, format, theirs));
        await opened.close();
        expect(Object.fromEntries(found)).toEqual(Object.fromEntries(expected));
        expect([...found.values()]).toContain(true);
        expect(await judgeMay('qemu-io', path, format, 'write')).toBe(true);
      });
    }
  }
});
