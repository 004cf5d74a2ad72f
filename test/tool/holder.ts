/** Programs that hold an image open, for the lock matrix. */
import { spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { existsSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { tempPath } from './temp.ts';

/** What an image is opened for: `snoop` reads with -U, or force-share. */
export type Use = 'read' | 'write' | 'snoop';

/** The judges that hold images. */
export const PROGRAMS = ['qemu-io', 'qemu-nbd', 'qemu-system-x86_64'] as const;

/** One of them. */
export type Program = (typeof PROGRAMS)[number];

/** A program that has an image open. */
export interface Holder {
  readonly pid: number;
  stop(): Promise<void>;
}

interface Start {
  readonly args: readonly string[];
  /** Resolves when the image is open. */
  readonly ready: (child: ChildProcess) => Promise<unknown>;
}

function blockdev(path: string, format: string, use: Use): string {
  const flags = [use === 'write' ? '' : ',read-only=on', use === 'snoop' ? ',force-share=on' : ''].join('');
  return `driver=${format}${flags},file.driver=file,file.filename=${path}`;
}

function startOf(program: Program, path: string, format: string, use: Use): Start {
  switch (program) {
    case 'qemu-io': {
      const flags = use === 'write' ? [] : use === 'read' ? ['-r'] : ['-r', '-U'];
      return {
        args: [...flags, '-f', format, path],
        ready: (child) => {
          child.stdin?.write('length\n');
          return said(child, /\d+ (?:[KMG]iB|bytes)/);
        },
      };
    }
    case 'qemu-nbd': {
      const socket = tempPath('nbd.sock');
      // Made when the image is open; the socket is there before.
      const pidFile = tempPath('nbd.pid');
      const read = use === 'write' ? [] : ['-r'];
      return {
        args: [
          '-k',
          socket,
          '-t',
          '--pid-file',
          pidFile,
          ...read,
          '--image-opts',
          blockdev(path, format, use),
        ],
        ready: async (child) => {
          while (!existsSync(pidFile) && child.exitCode === null) await sleep(5);
        },
      };
    }
    case 'qemu-system-x86_64':
      return {
        args: [
          ...[
            '-nodefaults',
            '-display',
            'none',
            '-S',
            '-machine',
            'pc,accel=tcg',
            '-m',
            '16',
            '-qmp',
            'stdio',
          ],
          ...['-blockdev', `${blockdev(path, format, use)},node-name=disk`],
          ...['-device', 'virtio-blk-pci,drive=disk'],
        ],
        ready: (child) => {
          // It greets before it opens devices, and answers after.
          child.stdin?.write('{"execute":"qmp_capabilities"}{"execute":"query-status"}');
          return said(child, /"status"/);
        },
      };
  }
}

function said(child: ChildProcess, what: RegExp): Promise<void> {
  return new Promise((resolve) => {
    let text = '';
    child.stdout?.on('data', (chunk: Buffer) => {
      text += chunk.toString();
      if (what.test(text)) resolve();
    });
  });
}

/** Starts a program on an image; gives what it says where a lock keeps it out. Throws for any other failure. */
export async function hold(
  program: Program,
  path: string,
  format: string,
  use: Use,
): Promise<Holder | string> {
  const { args, ready } = startOf(program, path, format, use);
  const child = spawn(program, args, { stdio: ['pipe', 'pipe', 'pipe'] });
  // One that is kept out reads nothing.
  child.stdin.on('error', () => undefined);
  let complaint = '';
  child.stderr.on('data', (chunk: Buffer) => (complaint += chunk.toString()));
  const over = once(child, 'close').then(() => 'over' as const);
  const first = await Promise.race([over, ready(child).then(() => 'open' as const)]);
  if (first === 'open') {
    const stop = async (): Promise<void> => {
      child.kill('SIGKILL');
      await over;
    };
    return { pid: child.pid ?? 0, stop };
  }
  if (/lock/.test(complaint)) return complaint;
  throw new Error(`${program} ${args.join(' ')}: ${complaint}`);
}
