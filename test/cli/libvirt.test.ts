// Libvirt as a client: its storage driver calls the `qemu-img` that it finds on its PATH, which here is spindle; beside
// it the same work with the real one.
import { spawnSync } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import {
  chmodSync,
  chownSync,
  existsSync,
  mkdirSync,
  readFileSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { dirname, join } from 'node:path';
import { afterEach, beforeAll, expect, it } from 'vitest';
import { builtCli, MAIN } from '../tool/cli.ts';
import * as qemu from '../tool/qemu.ts';
import { tempDir } from '../tool/temp.ts';

const programs = ['virsh', 'libvirtd', 'setpriv'];
const absent = programs.filter((one) => spawnSync('sh', ['-c', `command -v ${one}`]).status !== 0);
const missing = absent.length > 0 ? absent.join(', ') : qemu.qemuMissing();

/** Libvirt runs as a user of its own: for root it would be the one of the whole machine. */
const NOBODY = 65_534;
const root = process.geteuid?.() === 0;

const pids: string[] = [];

afterEach(() => {
  for (const file of pids.splice(0).filter((one) => existsSync(one)))
    process.kill(Number(readFileSync(file, 'utf8')), 'SIGTERM');
});

/** A session of libvirt with a pool `p`. */
class Session {
  readonly home: string;
  readonly pool: string;
  readonly #env: Record<string, string>;

  /** `qemuImg`: the program that it finds under this name. */
  constructor(qemuImg: readonly string[]) {
    this.home = tempDir();
    this.pool = join(this.home, 'pool');
    const bin = join(this.home, 'bin');
    chmodSync(this.home, 0o755);
    for (const folder of ['pool', 'bin', 'run', 'link'].map((name) => join(this.home, name))) {
      mkdirSync(folder);
      if (root) chownSync(folder, NOBODY, NOBODY);
    }
    const words = qemuImg.map((word) => `'${word}'`).join(' ');
    writeFileSync(
      join(bin, 'qemu-img'),
      `#!/bin/sh\nprintf '%s\\n' "$*" >> '${join(this.home, 'run', 'calls')}'\nexec ${words} "$@"\n`,
      { mode: 0o755 },
    );
    if (root) chownSync(this.home, NOBODY, NOBODY);
    this.#env = {
      PATH: `${bin}:${process.env['PATH'] ?? ''}`,
      HOME: this.home,
      XDG_RUNTIME_DIR: join(this.home, 'run'),
      XDG_CONFIG_HOME: join(this.home, 'config'),
      XDG_CACHE_HOME: join(this.home, 'cache'),
    };
    pids.push(join(this.home, 'run', 'libvirt', 'libvirtd.pid'));
  }

  /** Runs virsh; what it printed. */
  virsh(...args: readonly string[]): string {
    const { status, stdout, stderr } = this.attempt(...args);
    expect(status, `virsh ${args.join(' ')}: ${stderr}\n${this.calls.join('\n')}`).toBe(0);
    return stdout;
  }

  attempt(...args: readonly string[]): { status: number | null; stdout: string; stderr: string } {
    const user = root
      ? ['--reuid', String(NOBODY), '--regid', String(NOBODY), '--clear-groups']
      : ['--no-new-privs'];
    return spawnSync('setpriv', [...user, 'virsh', '-q', '-c', 'qemu:///session', ...args], {
      encoding: 'utf8',
      cwd: this.home,
      timeout: 240_000,
      env: { ...this.#env, LC_ALL: 'C', TZ: 'UTC' },
    });
  }

  /** What qemu-img was called with. */
  get calls(): string[] {
    const path = join(this.home, 'run', 'calls');
    if (!existsSync(path)) return [];
    return readFileSync(path, 'utf8').split('\n').slice(0, -1);
  }

  xml(name: string, text: string): string {
    const path = join(this.home, 'run', `${name}.xml`);
    writeFileSync(path, text);
    return path;
  }

  /** What libvirt says of a volume, but for places and times. */
  volume(name: string): string {
    return this.virsh('vol-dumpxml', '--pool', 'p', name)
      .replaceAll(this.home, '')
      .replace(/<timestamps>[\s\S]*?<\/timestamps>\s*/g, '')
      .replace(/<(allocation|physical) .*\s*/g, '');
  }
}

/** The command that is spindle under the name of qemu-img. */
function asQemuImg(): string[] {
  const link = join(tempDir(), 'qemu-img');
  chmodSync(dirname(link), 0o755);
  symlinkSync(MAIN, link);
  return [process.execPath, link];
}

function volumeXml(name: string, size: number, target: string, rest = ''): string {
  return `<volume><name>${name}</name><capacity>${String(size)}</capacity><target>${target}</target>${rest}</volume>`;
}

const MIB = 1024 ** 2;
const data = randomBytes(3 * MIB);

/** The same life of volumes for both. */
function live(session: Session): void {
  const v = session.virsh.bind(session);
  v('pool-define-as', 'p', 'dir', '--target', session.pool);
  v('pool-build', 'p');
  v('pool-start', 'p');
  v('vol-create-as', 'p', 'thin', '64M', '--format', 'qcow2');
  v('vol-create-as', 'p', 'flat', '8M', '--format', 'raw');
  v('vol-create-as', 'p', 'sparse', '8M', '--format', 'raw', '--allocation', '0');
  v('vol-create-as', 'p', 'ready', '16M', '--format', 'qcow2', '--prealloc-metadata');
  v('vol-create-as', 'p', 'half', '16M', '--format', 'qcow2', '--allocation', '0', '--prealloc-metadata');
  const old = "<format type='qcow2'/><compat>0.10</compat>";
  v('vol-create', 'p', session.xml('old', volumeXml('old', 5 * MIB, old)));
  const lazy = "<format type='qcow2'/><compat>1.1</compat><features><lazy_refcounts/></features>";
  v('vol-create', 'p', session.xml('lazy', volumeXml('lazy', 5 * MIB, lazy)));
  const cluster = "<format type='qcow2'/><clusterSize unit='KiB'>128</clusterSize>";
  v('vol-create', 'p', session.xml('large', volumeXml('large', 5 * MIB, cluster)));
  // What is uploaded into a raw volume goes through everything else.
  const plain = join(session.home, 'run', 'plain');
  writeFileSync(plain, data, { mode: 0o644 });
  v('vol-upload', '--pool', 'p', 'flat', plain, '--sparse');
  v(
    'vol-create-from',
    'p',
    session.xml('q', volumeXml('q', 8 * MIB, "<format type='qcow2'/>")),
    'flat',
    '--inputpool',
    'p',
  );
  v(
    'vol-create-as',
    'p',
    'over',
    '8M',
    '--format',
    'qcow2',
    '--backing-vol',
    'q',
    '--backing-vol-format',
    'qcow2',
  );
  v(
    'vol-create-as',
    'p',
    'above',
    '8M',
    '--format',
    'qcow2',
    '--backing-vol',
    'flat',
    '--backing-vol-format',
    'raw',
  );
  v('vol-clone', '--pool', 'p', 'q', 'copy');
  v('vol-clone', '--pool', 'p', 'flat', 'flat2');
  v('vol-clone', '--pool', 'p', 'over', 'over2');
  v(
    'vol-create-from',
    'p',
    session.xml('back', volumeXml('back', 8 * MIB, "<format type='raw'/>")),
    'over',
    '--inputpool',
    'p',
  );
  v('vol-resize', '--pool', 'p', 'thin', '96M');
  v('vol-resize', '--pool', 'p', 'thin', '10M', '--delta');
  v('vol-resize', '--pool', 'p', 'copy', '6M', '--shrink');
  v('vol-resize', '--pool', 'p', 'flat2', '12M');
  v('vol-resize', '--pool', 'p', 'sparse', '4M', '--shrink');
  v('vol-download', '--pool', 'p', 'back', join(session.home, 'run', 'downloaded'));
  v('vol-create-as', 'p', 'gone', '1M', '--format', 'qcow2');
  v('vol-wipe', '--pool', 'p', 'gone');
  v('vol-create-as', 'p', 'gone2', '1M', '--format', 'qcow2');
  v('vol-delete', '--pool', 'p', 'gone2');
  v('pool-refresh', 'p');
}

qemu.describeUnlessMissing('libvirt with spindle as qemu-img', missing, () => {
  beforeAll(builtCli);

  it('creates, clones, converts, resizes, wipes and lists volumes', { timeout: 300_000 }, async () => {
    const [ours, theirs] = [new Session(asQemuImg()), new Session(['/usr/bin/qemu-img'])];
    for (const one of [ours, theirs]) live(one);
    // Both were asked the same, and for all that there is to ask.
    const asked = (session: Session): string[] =>
      session.calls.map((line) => line.replaceAll(session.home, '')).sort();
    expect(asked(ours)).toEqual(asked(theirs));
    expect(new Set(asked(ours).map((line) => line.split(' ')[0]))).toEqual(
      new Set(['create', 'convert', 'resize']),
    );
    const names = (session: Session): string[] =>
      session
        .virsh('vol-list', 'p')
        .split('\n')
        .map((line) => line.trim().split(/\s+/)[0] ?? '')
        .filter((name) => name !== '')
        .sort();
    expect(names(ours)).toEqual(names(theirs));
    expect(names(ours).length).toBe(16);
    for (const name of names(ours)) {
      // A wiped image is as long as its file was.
      if (name === 'gone') continue;
      expect(ours.volume(name), name).toBe(theirs.volume(name));
      const [mine, judge] = [join(ours.pool, name), join(theirs.pool, name)];
      const format = /<format type='(\w+)'/.exec(ours.volume(name))?.[1] ?? '';
      expect(
        await qemu.compare({ path: mine, format }, { path: judge, format }, { strict: false }),
        name,
      ).toBe(true);
      if (format === 'qcow2') expect((await qemu.check(mine)).code, name).toBe(0);
    }
    const downloaded = readFileSync(join(ours.home, 'run', 'downloaded'));
    expect(downloaded.length).toBe(8 * MIB);
    expect(downloaded.subarray(0, data.length).equals(data)).toBe(true);
  });

  it('makes encrypted volumes', { timeout: 300_000 }, async () => {
    const session = new Session(asQemuImg());
    session.virsh('pool-define-as', 'p', 'dir', '--target', session.pool);
    session.virsh('pool-start', 'p');
    const uuid = '7a81f4a3-1c7b-4b8e-9a63-25f4ab9b2d11';
    const secret = `<secret ephemeral='no' private='no'><uuid>${uuid}</uuid></secret>`;
    session.virsh('secret-define', session.xml('secret', secret));
    const passphrase = join(session.home, 'run', 'passphrase');
    writeFileSync(passphrase, 'correct horse', { mode: 0o644 });
    session.virsh('secret-set-value', uuid, '--file', passphrase, '--plain');
    const encryption = `<encryption format='luks'><secret type='passphrase' uuid='${uuid}'/></encryption>`;
    for (const format of ['qcow2', 'raw']) {
      const target = `<format type='${format}'/>${encryption}`;
      session.virsh('vol-create', 'p', session.xml(format, volumeXml(format, 4 * MIB, target)));
      const path = join(session.pool, format);
      const key = format === 'raw' ? 'driver=luks,key-secret' : 'driver=qcow2,encrypt.key-secret';
      const options = [
        '--object',
        'secret,id=s,data=correct horse',
        '--image-opts',
        `${key}=s,file.filename=${path}`,
      ];
      await qemu.qemuIo(['-c', 'write -P 7 0 64k', '-c', 'read -P 7 0 64k', ...options]);
      expect(session.volume(format)).toContain("<encryption format='luks'>");
    }
    expect(session.calls.every((line) => !line.includes('correct horse'))).toBe(true);
  });

  it('hears why something cannot be done', { timeout: 300_000 }, () => {
    const session = new Session(asQemuImg());
    session.virsh('pool-define-as', 'p', 'dir', '--target', session.pool);
    session.virsh('pool-start', 'p');
    const cluster = "<format type='qcow2'/><clusterSize unit='KiB'>3</clusterSize>";
    const { status, stderr } = session.attempt(
      'vol-create',
      'p',
      session.xml('bad', volumeXml('bad', MIB, cluster)),
    );
    expect(status).toBe(1);
    expect(stderr).toMatch(/qemu-img: .*[Cc]luster/);
    expect(session.virsh('vol-list', 'p').trim()).toBe('');
  });
});
