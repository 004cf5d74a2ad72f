// The judge: libvirt 9 with the same verbs on a twin directory of the same file system. Facts and exit codes must agree.
import { execFileSync, spawn, spawnSync, type ChildProcess } from 'node:child_process';
import {
  chmodSync,
  chownSync,
  existsSync,
  mkdirSync,
  readFileSync,
  truncateSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { afterAll, beforeAll, expect, it } from 'vitest';
import { parseXml, type Xml } from '../../src/pool/xml.ts';
import { builtCli, spindle, type CliResult } from '../tool/cli.ts';
import * as qemu from '../tool/qemu.ts';
import { tempDir } from '../tool/temp.ts';

/** Neither side is root, so that libvirt keeps to directories of this test. */
const NOBODY = 65534;
const SCHEMAS = '/usr/share/libvirt/schemas';

function missing(): string | undefined {
  for (const program of ['libvirtd', 'virsh', 'xmllint', 'setpriv'])
    if (spawnSync(program, ['--version'], { stdio: 'ignore' }).error !== undefined) return program;
  if (process.getuid?.() !== 0) return 'root, to run libvirtd as another user on a file system of its own';
  return qemu.qemuMissing();
}

qemu.describeUnlessMissing('beside libvirt 9', missing(), () => {
  const root = tempDir();
  const disk = join(root, 'disk');
  const dirs = { ours: join(disk, 'ours'), theirs: join(disk, 'twin') };
  const xdg = {
    HOME: join(root, 'home'),
    XDG_CONFIG_HOME: join(root, 'config'),
    XDG_RUNTIME_DIR: join(root, 'run'),
    XDG_CACHE_HOME: join(root, 'cache'),
    XDG_DATA_HOME: join(root, 'data'),
    LC_ALL: 'C',
  };
  let daemon: ChildProcess | undefined;
  let mounted = false;

  const virsh = async (...args: string[]): Promise<CliResult> => {
    const as = ['--reuid', String(NOBODY), '--regid', String(NOBODY), '--clear-groups'];
    const env = { ...process.env, ...xdg };
    return new Promise((resolve) => {
      const child = spawn('setpriv', [...as, 'virsh', '-c', 'storage:///session', ...args], {
        env,
        stdio: ['ignore', 'pipe', 'pipe'],
      });
      let stdout = '';
      let stderr = '';
      child.stdout.on('data', (data: Buffer) => (stdout += data.toString()));
      child.stderr.on('data', (data: Buffer) => (stderr += data.toString()));
      child.on('close', (code) => resolve({ stdout, stderr, code: code ?? 128 }));
    });
  };
  const ours = (...args: string[]): Promise<CliResult> => spindle(args, { uid: NOBODY, env: xdg });

  /** The same verb on both sides, `DIR` being the directory of each; the exit codes must agree. */
  const both = async (...args: string[]): Promise<{ ours: string; theirs: string }> => {
    const place = (dir: string): string[] => args.map((arg) => arg.replaceAll('DIR', dir));
    const mine = await ours(...place(dirs.ours));
    const libvirt = await virsh(...place(dirs.theirs));
    expect({ args, code: mine.code, stderr: libvirt.code === 0 ? mine.stderr : '' }).toEqual({
      args,
      code: libvirt.code,
      stderr: '',
    });
    return { ours: mine.stdout, theirs: libvirt.stdout };
  };

  /** Text without what must differ: directories and UUIDs. */
  const plain = (text: string): string =>
    text
      .replaceAll(dirs.ours, '/DIR/')
      .replaceAll(dirs.theirs, '/DIR/')
      .replace(/[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}/g, 'UUID');

  beforeAll(async () => {
    await builtCli();
    chmodSync(root, 0o755);
    for (const path of Object.values(xdg).filter((value) => value.startsWith('/'))) {
      mkdirSync(path, { recursive: true });
      chmodSync(path, 0o700);
      chownSync(path, NOBODY, NOBODY);
    }
    // A file system that nobody else writes to, so that both see the same room.
    mkdirSync(disk);
    const image = join(root, 'image');
    writeFileSync(image, '');
    truncateSync(image, 512 * 1024 ** 2);
    execFileSync('mkfs.ext4', ['-q', '-F', image]);
    execFileSync('mount', ['-o', 'loop', image, disk]);
    mounted = true;
    chownSync(disk, NOBODY, NOBODY);
    const as = ['--reuid', String(NOBODY), '--regid', String(NOBODY), '--clear-groups'];
    daemon = spawn('setpriv', [...as, 'libvirtd', '--timeout', '600'], {
      env: { ...process.env, ...xdg },
      stdio: 'ignore',
    });
    for (let tries = 0; (await virsh('pool-list')).code !== 0; tries++) {
      if (tries > 200) throw new Error('libvirtd does not answer');
      await sleep(100);
    }
  });

  afterAll(async () => {
    if (daemon !== undefined) {
      const ended = new Promise((resolve) => daemon?.on('close', resolve));
      daemon.kill();
      await ended;
    }
    if (mounted) execFileSync('umount', [disk]);
  });

  it('the same verbs give the same answers', async () => {
    const same = async (...args: string[]): Promise<void> => {
      const answers = await both(...args);
      expect(plain(answers.ours), args.join(' ')).toBe(plain(answers.theirs));
    };
    await same('pool-define-as', 'p', 'dir', '--target', 'DIR');
    await same('pool-list', '--all');
    await same('pool-list');
    await same('pool-info', 'p');
    await both('pool-start', 'p');
    await same('pool-start', 'p', '--build');
    await both('pool-start', 'p');
    await both('pool-build', 'p');
    await same('pool-autostart', 'p');
    await same('pool-list', '--autostart');
    await same('pool-list', '--uuid');
    await same('vol-list', 'p');
    await same('vol-list', 'p', '--details');
    const volumes: string[][] = [
      ['whole.raw', '10M'],
      ['thin.raw', '10M', '--allocation', '0'],
      ['part.raw', '10M', '--allocation', '4M'],
      ['odd.raw', '1000001'],
      ['thin.qcow2', '64M', '--format', 'qcow2'],
      ['meta.qcow2', '64M', '--format', 'qcow2', '--prealloc-metadata', '--allocation', '0'],
      ['falloc.qcow2', '8M', '--format', 'qcow2', '--prealloc-metadata'],
      [
        'top.qcow2',
        '64M',
        '--format',
        'qcow2',
        '--backing-vol',
        'thin.qcow2',
        '--backing-vol-format',
        'qcow2',
      ],
    ];
    for (const args of volumes) await same('vol-create-as', 'p', ...args);
    await same('vol-clone', 'thin.qcow2', 'clone.qcow2', '--pool', 'p');
    await same('vol-clone', 'whole.raw', 'clone.raw', '--pool', 'p');
    await same('vol-resize', 'thin.raw', '20M', '--pool', 'p');
    await same('vol-resize', 'thin.raw', '1M', '--delta', '--pool', 'p');
    await both('vol-resize', 'thin.raw', '1M', '--pool', 'p');
    await same('vol-resize', 'thin.raw', '15M', '--shrink', '--pool', 'p');
    await both('vol-resize', 'whole.raw', '1M', '--shrink', '--pool', 'p');
    await same('vol-resize', 'part.raw', '12M', '--allocate', '--pool', 'p');
    await same('vol-resize', 'thin.qcow2', '128M', '--pool', 'p');
    await both('vol-create-as', 'p', 'whole.raw', '1M');
    await both('vol-create-as', 'p', 'x', '1.5G');
    await both('vol-create-as', 'p', 'x', '1M', '--backing-vol', 'whole.raw');
    await both('vol-create-as', 'p', 'a/b', '1M');
    await both('vol-info', 'nothing', '--pool', 'p');
    for (const dir of Object.values(dirs)) {
      mkdirSync(join(dir, 'folder'));
      writeFileSync(join(dir, 'text'), 'text\n');
      writeFileSync(join(dir, '.hidden'), '');
    }
    await same('pool-refresh', 'p');
    await same('vol-list', 'p');
    const names = [
      ...volumes.map(([name = '']) => name),
      'clone.qcow2',
      'clone.raw',
      'text',
      '.hidden',
      'folder',
    ];
    for (const name of names) {
      if (name !== 'folder') await same('vol-info', name, '--pool', 'p', '--bytes', '--physical');
      // What the metadata of qcow2 takes of the host is for each program to decide: spindle leaves holes in it.
      if (!name.endsWith('.qcow2')) await same('vol-info', name, '--pool', 'p');
      await same('vol-path', name, '--pool', 'p');
      await same('vol-key', name, 'p');
    }
    await same('vol-pool', 'DIR/whole.raw');
    await same('vol-name', 'DIR/whole.raw');
    const upload = join(root, 'upload');
    writeFileSync(upload, Buffer.alloc(70_000, 'upload'));
    await both('vol-upload', 'thin.raw', upload, '--pool', 'p', '--offset', '4096');
    for (const name of ['whole.raw', 'thin.raw', 'part.raw', 'odd.raw', 'clone.raw'])
      expect(
        await qemu.compare(
          { path: join(dirs.ours, name), format: 'raw' },
          { path: join(dirs.theirs, name), format: 'raw' },
          { strict: false },
        ),
      ).toBe(true);
    for (const name of ['thin', 'meta', 'falloc', 'top', 'clone'])
      expect(
        await qemu.compare(
          { path: join(dirs.ours, `${name}.qcow2`), format: 'qcow2' },
          { path: join(dirs.theirs, `${name}.qcow2`), format: 'qcow2' },
        ),
      ).toBe(true);
    await same('vol-wipe', 'clone.raw', '--pool', 'p');
    await same('vol-delete', 'clone.raw', '--pool', 'p');
    await both('vol-delete', 'clone.raw', '--pool', 'p');
  });

  it('the room is the same to the byte', async () => {
    await virsh('pool-refresh', 'p');
    execFileSync('sync', ['-f', disk]);
    const { ours: mine, theirs } = await both('pool-info', 'p', '--bytes');
    // Promised and Ratio are spindle's own lines.
    expect(plain(mine).replace(/^(Promised|Ratio):.*\n/gm, '')).toBe(plain(theirs));
    const list = await both('pool-list', '--details');
    expect(plain(list.ours)).toBe(plain(list.theirs));
  });

  /** An element as facts: what must differ between the twins is left out. */
  const facts = (xml: Xml, without: ReadonlySet<string>): unknown => ({
    name: xml.name,
    attributes: xml.attributes,
    text: plain(xml.text),
    children: xml.children.filter(({ name }) => !without.has(name)).map((child) => facts(child, without)),
  });

  it('the XML says the same', async () => {
    const volume = join(root, 'volume.xml');
    writeFileSync(
      volume,
      `<volume><name>same.qcow2</name><capacity unit='M'>32</capacity><allocation>0</allocation><target><format type='qcow2'/>
       <permissions><mode>0640</mode></permissions><compat>1.1</compat><features><lazy_refcounts/></features></target></volume>`,
    );
    await both('vol-create', 'p', volume);
    await both('pool-refresh', 'p');
    const documents: string[][] = [
      ['pool-dumpxml', 'p'],
      ...['whole.raw', 'thin.raw', 'same.qcow2', 'text', 'folder'].map((name) => [
        'vol-dumpxml',
        name,
        '--pool',
        'p',
      ]),
    ];
    for (const args of documents) {
      const { ours: mine, theirs } = await both(...args);
      const without = new Set(['timestamps', 'uuid', ...(args.includes('same.qcow2') ? ['allocation'] : [])]);
      expect(facts(parseXml(mine, 'ours'), without), args.join(' ')).toEqual(
        facts(parseXml(theirs, 'theirs'), without),
      );
      const file = join(root, 'document.xml');
      writeFileSync(file, mine);
      const schema = args[0] === 'pool-dumpxml' ? 'storagepool' : 'storagevol';
      const judged = spawnSync('xmllint', ['--noout', '--relaxng', join(SCHEMAS, `${schema}.rng`), file], {
        encoding: 'utf8',
      });
      expect({ args, status: judged.status, stderr: judged.stderr }).toMatchObject({ args, status: 0 });
    }
  });

  it('pools of every kind are defined by each side from the XML of the other', async () => {
    const kinds: string[][] = [
      ['a', 'dir', '--target', '/srv/a'],
      ['b', 'fs', '--source-dev', '/dev/vdb1', '--source-format', 'ext4', '--target', '/srv/b'],
      [
        'c',
        'netfs',
        '--source-host',
        'nas',
        '--source-path',
        '/export',
        '--source-format',
        'nfs',
        '--source-protocol-ver',
        '4.2',
        '--target',
        '/srv/c',
      ],
      ['d', 'logical', '--source-dev', '/dev/vdc', '--source-name', 'vg0', '--target', '/dev/vg0'],
      [
        'e',
        'iscsi',
        '--source-host',
        'san',
        '--source-dev',
        'iqn.2024-01.lab:t1',
        '--target',
        '/dev/disk/by-path',
        '--auth-type',
        'chap',
        '--auth-username',
        'joe',
        '--secret-usage',
        'lab',
      ],
    ];
    for (const args of kinds) {
      const [name = ''] = args;
      const file = join(root, `${name}.xml`);
      // Ours to them.
      expect((await ours('pool-define-as', ...args)).stderr).toBe('');
      const mine = (await ours('pool-dumpxml', name)).stdout;
      writeFileSync(file, mine);
      expect(await virsh('pool-define', file, '--validate')).toMatchObject({ code: 0 });
      const theirs = (await virsh('pool-dumpxml', name)).stdout;
      expect(facts(parseXml(mine, 'ours'), new Set())).toEqual(facts(parseXml(theirs, 'theirs'), new Set()));
      const judged = spawnSync('xmllint', ['--noout', '--relaxng', join(SCHEMAS, 'storagepool.rng'), file], {
        encoding: 'utf8',
      });
      expect({ name, status: judged.status, stderr: judged.stderr }).toMatchObject({ name, status: 0 });
      // Theirs to us: the file, and the pool as it lies there.
      await ours('pool-undefine', name);
      writeFileSync(file, theirs);
      expect(await ours('pool-define', file)).toMatchObject({ code: 0, stderr: '' });
      await ours('pool-undefine', name);
      expect(await ours('pool-define', name, '--libvirt')).toMatchObject({ code: 0, stderr: '' });
      expect((await ours('pool-dumpxml', name)).stdout).toBe(mine);
    }
    const listed = await ours('pool-list', '--libvirt', '--all', '--name');
    expect(listed.stdout.trim().split('\n')).toEqual(['a', 'b', 'c', 'd', 'e', 'p']);
  });

  it('the end is the same', async () => {
    for (const args of [
      ['pool-delete', 'p'],
      ['pool-destroy', 'p'],
      ['pool-destroy', 'p'],
      ['vol-list', 'p'],
      ['pool-delete', 'p'],
      ['pool-undefine', 'p'],
      ['pool-info', 'p'],
    ])
      await both(...args);
    expect(existsSync(join(dirs.ours, 'whole.raw'))).toBe(true);
    expect(readFileSync(join(dirs.ours, 'text'), 'utf8')).toBe('text\n');
  });
});
