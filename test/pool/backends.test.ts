// Pools of other kinds. A file system on a loop device is real. LVM, NFS and iSCSI need a kernel that this machine may not
// have: here their tools are stand-ins that record how they are called and answer as the real ones were seen to; the
// guest lab (npm run test:lab) runs the real ones.
import { execFileSync, spawn } from 'node:child_process';
import {
  chmodSync,
  closeSync,
  existsSync,
  mkdirSync,
  openSync,
  readFileSync,
  rmdirSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { iscsiBackendAt, parseSessions } from '../../src/pool/backend/iscsi.ts';
import { volumesOf } from '../../src/pool/backend/logical.ts';
import { parseDevices, parseReport } from '../../src/pool/backend/lvm.ts';
import { parseMounts } from '../../src/pool/backend/mounted.ts';
import { parseExports } from '../../src/pool/backend/netfs.ts';
import { parsePool, type PoolDefinition } from '../../src/pool/definition.ts';
import { forecast, type Sample } from '../../src/pool/samples.ts';
import { runTool } from '../../src/storage/tool.ts';
import { builtCli } from '../tool/cli.ts';
import { attachLoop, noLoop } from '../tool/loop.ts';
import { describeUnlessMissing } from '../tool/qemu.ts';
import { newBench, outcomes, type Bench } from './help.ts';

const real = process.env['PATH'];
afterEach(() => {
  process.env['PATH'] = real;
});

/** Puts stand-ins for tools in front; each is the body of a shell script. Gives the calls, one a line. */
function standIns(bench: Bench, tools: Readonly<Record<string, string>>): () => string[] {
  const folder = join(bench.root, 'bin');
  const log = join(bench.root, 'calls');
  mkdirSync(folder, { recursive: true });
  writeFileSync(log, '');
  for (const [name, body] of Object.entries(tools))
    writeFileSync(join(folder, name), `#!/bin/sh\necho "${name} $*" >> '${log}'\n${body}\n`, { mode: 0o755 });
  process.env['PATH'] = `${folder}:${real ?? ''}`;
  return () =>
    readFileSync(log, 'utf8')
      .trim()
      .split('\n')
      .filter((line) => line !== '');
}

describe('a tool', () => {
  it('that is missing, fails or hangs is told in one line', async () => {
    const bench = newBench();
    standIns(bench, {
      fails: 'echo first >&2; echo "  the disk s3cret is gone" >&2; exit 5',
      hangs: 'exec sleep 600',
    });
    await expect(runTool('no-such-tool', [])).rejects.toMatchObject({ code: 'TOOL_MISSING' });
    process.env['PATH'] = join(bench.root, 'bin');
    await expect(runTool('fails', ['x'], { hide: 's3cret' })).rejects.toThrow(
      /'fails x' failed \(exit 5\): first; the disk \(hidden\) is gone/,
    );
    await expect(runTool('hangs', [], { timeout: 200 })).rejects.toMatchObject({ code: 'TOOL_TIMEOUT' });
    await expect(runTool('vgs-not', [])).rejects.toThrow(/install the package vgs-not/);
  });

  it.each(['is given up', 'is ended with spindle'])('that %s is killed with what it started', async (how) => {
    const bench = newBench();
    const note = join(bench.root, 'sleeper');
    standIns(bench, { starts: `sleep 600 & echo $! > '${note}.new'; mv '${note}.new' '${note}'; wait` });
    const sleeper = async (): Promise<number> => {
      while (!existsSync(note)) await sleep(20);
      return Number(readFileSync(note, 'utf8'));
    };
    // A dead one may be waited for by nobody.
    const runs = (pid: number): boolean => {
      try {
        return !/^State:\s+Z/m.test(readFileSync(`/proc/${String(pid)}/status`, 'utf8'));
      } catch {
        return false;
      }
    };
    let pid: number;
    if (how === 'is given up') {
      const ended = runTool('starts', [], { timeout: 2000 }).catch((error: unknown) => error);
      pid = await sleeper();
      expect(runs(pid)).toBe(true);
      expect(await ended).toMatchObject({ code: 'TOOL_TIMEOUT' });
    } else {
      const tool = join(process.cwd(), 'src', 'storage', 'tool.ts');
      // Beside another one.
      const script = `import { runTool } from '${tool}'; await Promise.all([runTool('starts', []), runTool('sleep', ['600'])]);`;
      const child = spawn(process.execPath, ['--import', 'tsx', '--input-type=module', '--eval', script]);
      pid = await sleeper();
      expect(runs(pid)).toBe(true);
      const ended = new Promise((resolve) =>
        child.on('close', (_, signal) => {
          resolve(signal);
        }),
      );
      child.kill('SIGTERM');
      expect(await ended).toBe('SIGTERM');
    }
    // The kernel takes its time.
    for (let wait = 0; wait < 500 && runs(pid); wait++) await sleep(20);
    expect(runs(pid)).toBe(false);
  });

  it('gets its arguments as they are, past any shell', async () => {
    const bench = newBench();
    const marker = join(bench.root, 'marker');
    standIns(bench, { show: 'for word; do echo "<$word>"; done' });
    const words = [`$(touch ${marker})`, `; touch ${marker}`, '*', 'a b', "'"];
    expect((await runTool('show', words)).stdout).toBe(words.map((word) => `<${word}>\n`).join(''));
    expect(existsSync(marker)).toBe(false);
  });
});

describeUnlessMissing('a file system on a loop device', noLoop(), () => {
  it.each([
    ['ext4', 64],
    ['ext3', 64],
    ['ext2', 64],
    ['xfs', 320],
  ])('is made as %s, mounted, used, unmounted, and not made again', async (format, mib) => {
    const bench = newBench();
    const loop = attachLoop(new Uint8Array(mib * 1024 ** 2));
    try {
      const target = bench.at('f');
      const pool = await bench.pools.define(
        parsePool(
          `<pool type='fs'><name>f</name><source><device path='${loop.path}'/><format type='${format}'/></source><target><path>${target}</path></target></pool>`,
        ),
      );
      await expect(pool.start({ build: 'plain' })).rejects.toMatchObject({ code: 'TOOL_FAILED' });
      expect(pool.active()).toBe(null);
      await pool.build('no-overwrite');
      await expect(pool.build('no-overwrite')).rejects.toThrow(`holds ${format} already`);
      await pool.start();
      try {
        expect(readFileSync('/proc/self/mounts', 'utf8')).toMatch(
          new RegExp(`^${loop.path} ${target} ${format} rw,nosuid,nodev,noexec`, 'm'),
        );
        const { usage } = await pool.info();
        expect(usage?.capacity).toBeGreaterThan(mib * 0.6 * 1024 ** 2);
        expect(usage?.capacity).toBeLessThan(mib * 1024 ** 2);
        await pool.createVolume({ name: 'v', capacity: 1024 ** 2 });
        // No space: nothing is left of it.
        const small = await pool.volume('v');
        expect(
          await outcomes([
            pool.createVolume({ name: 'large', capacity: 1024 ** 3 }),
            pool.createVolume(
              { name: 'large', capacity: 1024 ** 3, format: 'qcow2' },
              { policy: 'thick-eager' },
            ),
            pool.setGuard(1024 ** 3),
            small.resize(1024 ** 3, { allocate: true }),
          ]),
        ).toEqual(['NO_SPACE', 'NO_SPACE', 'NO_SPACE', 'NO_SPACE']);
        expect((await pool.volumes()).map(({ name, capacity }) => [name, capacity])).toEqual([
          ...(format === 'xfs' ? [] : [['lost+found', 0]]),
          ['v', 1024 ** 2],
        ]);
        // An emergency: the pool is full, and the reserve lets it go on.
        await pool.setGuard(4 * 1024 ** 2);
        const { available } = (await pool.info()).usage ?? { available: 0 };
        await pool.createVolume({ name: 'rest', capacity: available - 2 * 1024 ** 2 });
        expect(await outcomes([pool.createVolume({ name: 'more', capacity: 4 * 1024 ** 2 })])).toEqual([
          'NO_SPACE',
        ]);
        await pool.setGuard(0);
        await pool.createVolume({ name: 'more', capacity: 4 * 1024 ** 2 });
        // Somebody has a file of it open: it stays as it is.
        const held = openSync(join(target, 'v'), 'r');
        await expect(pool.destroy()).rejects.toThrow(/busy/);
        closeSync(held);
        expect(pool.active()).not.toBe(null);
      } finally {
        await pool.destroy();
      }
      expect(existsSync(join(target, 'v'))).toBe(false);
      await pool.start();
      expect((await pool.volume('v')).facts.capacity).toBe(1024 ** 2);
      // Somebody unmounts it behind our back.
      execFileSync('umount', [target]);
      await expect(pool.volumes()).rejects.toMatchObject({ code: 'POOL_GONE' });
      await expect(pool.refresh()).rejects.toMatchObject({ code: 'POOL_GONE' });
      expect(pool.active()).toBe(null);
      await pool.delete();
      expect(existsSync(target)).toBe(false);
    } finally {
      loop.detach();
    }
  });
});

describe('netfs', () => {
  const xml = (more = ''): string =>
    `<pool type='netfs' xmlns:fs='http://libvirt.org/schemas/storagepool/fs/1.0'><name>n</name><source><host name='nas'/><dir path='/exp'/><format type='nfs'/>${more}</source>` +
    `<target><path>TARGET</path></target><fs:mount_opts><fs:option name='sync'/></fs:mount_opts></pool>`;

  it('mounts with the version and the options that it says, and quotes what mount says', async () => {
    const bench = newBench();
    const calls = standIns(bench, { mount: 'echo "mount.nfs: access denied by server" >&2; exit 32' });
    const pool = await bench.pools.define(
      parsePool(xml("<protocol ver='4.2'/>").replace('TARGET', bench.at('n'))),
    );
    await expect(pool.start()).rejects.toThrow(/access denied by server/);
    expect(calls()).toEqual([
      `mount -o nodev,nosuid,noexec,nfsvers=4.2,sync -t nfs -- nas:/exp ${bench.at('n')}`,
    ]);
    expect(pool.active()).toBe(null);
  });

  it('finds what a server exports', async () => {
    const bench = newBench();
    const calls = standIns(bench, { showmount: "printf '/srv/a *\\n/srv/b 10.0.0.0/8,host\\n'" });
    expect(await bench.pools.sources('netfs', { host: 'nas' })).toMatchObject([
      { dir: '/srv/a' },
      { dir: '/srv/b' },
    ]);
    expect(calls()).toEqual(['showmount --no-headers --exports nas']);
    await expect(bench.pools.sources('netfs', { host: '-h' })).rejects.toMatchObject({ code: 'BAD_NAME' });
    await expect(bench.pools.sources('netfs')).rejects.toMatchObject({ code: 'BAD_OPTION' });
    expect(parseExports('/a (everyone)\n/with space *\n\n')).toEqual(['/a', '/with space']);
  });

  it('reads mounts as the kernel writes them', () => {
    expect(parseMounts('nas:/e\\040x /mnt/a\\134b nfs4 rw 0 0\n')).toEqual([
      { source: 'nas:/e x', target: '/mnt/a\\b' },
    ]);
  });
});

describe('logical', () => {
  const definition = `<pool type='logical'><name>vg0</name><source><device path='/dev/vdx'/><device path='/dev/vdy'/></source></pool>`;
  const row = (values: Readonly<Record<string, string>>): string =>
    JSON.stringify({
      lv_attr: '-wi-a-----',
      lv_uuid: 'u',
      origin: '',
      pool_lv: '',
      data_percent: '',
      stripes: '1',
      vg_extent_size: '4194304',
      ...values,
    });
  const LVS = `{"report":[{"lv":[
    ${row({ lv_name: 'lin', lv_size: '67108864', seg_size: '41943040', devices: '/dev/vdx(0)' })},
    ${row({ lv_name: 'lin', lv_size: '67108864', seg_size: '25165824', devices: '/dev/vdy(3)' })},
    ${row({ lv_name: 'tp', lv_size: '134217728', lv_attr: 'twi-aotz--' })},
    ${row({ lv_name: 'thin', lv_size: '1073741824', lv_attr: 'Vwi-a-tz--', pool_lv: 'tp', data_percent: '12.50' })},
    ${row({ lv_name: 'snap', lv_size: '8388608', lv_attr: 'swi-a-s---', origin: 'lin', origin_size: '67108864', devices: '/dev/vdx(30)', seg_size: '8388608' })},
    ${row({ lv_name: 'off', lv_size: '8388608', lv_attr: '-wi-------' })}]}]}`;

  it('reads the reports of lvm2', () => {
    const volumes = volumesOf(parseReport(LVS, 'lv'), 'vg0');
    expect(volumes.map(({ name, capacity, allocation }) => [name, capacity, allocation])).toEqual([
      ['lin', 67108864, 67108864],
      ['snap', 67108864, 8388608],
      ['thin', 1073741824, 134217728],
    ]);
    expect(volumes[0]?.extents).toEqual([
      { device: '/dev/vdx', start: 0, end: 41943040 },
      { device: '/dev/vdy', start: 12582912, end: 37748736 },
    ]);
    expect(volumes[1]?.backing).toEqual({ path: '/dev/vg0/lin', format: 'raw' });
    expect(parseDevices('/dev/a(1),/dev/b(20)')).toEqual([
      { device: '/dev/a', extent: 1 },
      { device: '/dev/b', extent: 20 },
    ]);
    expect(() => parseReport('no json', 'lv')).toThrow(/no JSON/);
    expect(parseReport('{"report":[{}]}', 'vg')).toEqual([]);
  });

  describe('drives lvm2', () => {
    let bench: Bench;
    let calls: () => string[];
    beforeEach(() => {
      bench = newBench();
      calls = standIns(bench, {
        vgs: `echo '{"report":[{"vg":[{"vg_name":"vg0","vg_size":"1000","vg_free":"400","vg_missing_pv_count":"'"\${MISSING:-0}"'"}]}]}'`,
        lvs: `cat <<'E'\n${LVS}\nE`,
        ...Object.fromEntries(
          ['vgchange', 'lvremove', 'lvcreate', 'lvextend', 'udevadm', 'vgremove', 'pvremove', 'pvcreate'].map(
            (name) => [name, ''],
          ),
        ),
        vgcreate: 'echo "  A volume group called vg0 already exists." >&2; exit 5',
        blkid: 'exit 2',
      });
    });
    afterEach(() => {
      delete process.env['MISSING'];
    });
    const lvmCalls = (): string[] => calls().filter((line) => !/^(vgs|lvs|udevadm|blkid) /.test(line));

    it('to start, make, resize, delete and stop', async () => {
      const pool = await bench.pools.define(parsePool(definition));
      await pool.start();
      expect(lvmCalls()).toEqual(['vgchange --activate ay -- vg0']);
      expect((await pool.info()).usage).toEqual({ capacity: 1000, allocation: 600, available: 400 });
      // The stand-in does not list what was made, so that looking at it afterwards fails.
      for (const [volume, policy] of [
        [{ name: 'a', capacity: 4096 }, undefined],
        [{ name: 'b', capacity: 4096, allocation: 0 }, undefined],
        [{ name: 'c', capacity: 4096 }, 'thin'],
        [{ name: 'd', capacity: 4096, backing: { path: 'lin' } }, undefined],
        [{ name: 'e', capacity: 4096, backing: { path: 'thin' } }, undefined],
      ] as const)
        await expect(pool.createVolume(volume, { policy })).rejects.toMatchObject({
          code: 'VOLUME_NOT_FOUND',
        });
      expect(
        await outcomes([
          pool.createVolume({ name: 'lin', capacity: 1 }),
          pool.createVolume({ name: 'q', capacity: 1, format: 'qcow2' }),
        ]),
      ).toEqual([...['EXISTS', 'UNSUPPORTED']]);
      await (await pool.volume('lin')).resize(134217728);
      await (await pool.volume('thin')).delete();
      await pool.setGuard(8192);
      await pool.destroy();
      expect(lvmCalls().slice(1)).toEqual([
        'lvcreate --yes --wipesignatures y --name a --size 4096b -- vg0',
        'lvcreate --yes --name b --virtualsize 4096b --thinpool tp -- vg0',
        'lvcreate --yes --name c --virtualsize 4096b --thinpool tp -- vg0',
        'lvcreate --yes --name d --snapshot --size 4096b -- vg0/lin',
        'lvcreate --yes --name e --snapshot --setactivationskip n -- vg0/thin',
        'lvextend --size 134217728b -- vg0/lin',
        'lvremove --force -- vg0/thin',
        'lvcreate --yes --activate n --zero n --name spindle_guard --size 8192b -- vg0',
        'vgchange --activate n -- vg0',
      ]);
    });

    it('to undo what failed, and to lose no volume for another', async () => {
      const pool = await bench.pools.define(parsePool(definition));
      await pool.start();
      // Nothing thin is there yet: the pool for it goes again when its first volume cannot be made.
      standIns(bench, {
        lvs: `echo '{"report":[{"lv":[]}]}'`,
        lvcreate:
          'case "$*" in *thinpool*) echo "  Insufficient free space: 9 extents needed, but only 3 available" >&2; exit 5;; esac',
        lvremove: '',
      });
      await expect(pool.createVolume({ name: 'b', capacity: 4096, allocation: 0 })).rejects.toMatchObject({
        code: 'NO_SPACE',
      });
      expect(lvmCalls()).toEqual([
        'lvcreate --yes --type thin-pool --extents 50%FREE --name spindle_thin -- vg0',
        'lvcreate --yes --name b --virtualsize 4096b --thinpool spindle_thin -- vg0',
        'lvremove --force -- vg0/spindle_thin',
      ]);
      standIns(bench, {
        lvs: `cat <<'E'\n${LVS}\nE`,
        // One of its volumes is open.
        vgchange:
          'case "$*" in *"--activate n "*) echo "  Logical volume vg0/lin in use." >&2; exit 5;; esac',
      });
      expect(
        await outcomes([
          pool.volume('lin').then((volume) => volume.delete()),
          pool.volume('snap').then((volume) => volume.resize(134217728)),
          pool.volume('lin').then((volume) => volume.resize(67108864)),
        ]),
      ).toEqual(['IN_USE', 'UNSUPPORTED', 'ok']);
      expect(lvmCalls()).toEqual([]);
      expect(await outcomes([pool.destroy()])).toEqual(['TOOL_FAILED']);
      expect(lvmCalls()).toEqual(['vgchange --activate n -- vg0', 'vgchange --activate ay -- vg0']);
      expect(pool.active()).not.toBe(null);
    });

    it('to build, giving back what was begun when it fails', async () => {
      const pool = await bench.pools.define(parsePool(definition));
      await expect(pool.build()).rejects.toThrow(/A volume group called vg0 already exists/);
      expect(lvmCalls()).toEqual([
        ...['pvcreate --yes -- /dev/vdx', 'pvcreate --yes -- /dev/vdy', 'vgcreate -- vg0 /dev/vdx /dev/vdy'],
        ...['pvremove --yes -- /dev/vdx', 'pvremove --yes -- /dev/vdy'],
      ]);
    });

    it('to delete, again where that failed half-way', async () => {
      const tools = (groups: string, disks: string, other: Readonly<Record<string, string>> = {}): void => {
        calls = standIns(bench, {
          vgs: `echo '{"report":[{"vg":[${groups}]}]}'`,
          pvs: `echo '{"report":[{"pv":[${disks}]}]}'`,
          ...{ vgremove: '', pvremove: '', ...other },
        });
      };
      const changes = (): string[] => calls().filter((line) => /^(vg|pv)remove /.test(line));
      const pool = await bench.pools.define(parsePool(definition));
      const group = '{"vg_name":"vg0"}';
      const [x, y] = ['x', 'y'].map((disk) => `{"pv_name":"/dev/vd${disk}","vg_name":""}`);
      tools(group, '', { pvremove: '[ "$3" = /dev/vdy ] && exit 5; exit 0' });
      expect(await outcomes([pool.delete()])).toEqual(['TOOL_FAILED']);
      expect(changes()).toEqual([
        ...['vgremove --force -- vg0', 'pvremove --yes -- /dev/vdx', 'pvremove --yes -- /dev/vdy'],
      ]);
      // Another group has taken the first disk since, and there are disks that are not of this pool.
      tools('{"vg_name":"new"}', `{"pv_name":"/dev/vdx","vg_name":"new"},${y ?? ''},{"pv_name":"/dev/vdz"}`);
      expect(await outcomes([pool.delete()])).toEqual(['ok']);
      expect(changes()).toEqual(['pvremove --yes -- /dev/vdy']);
      tools('', `${x ?? ''},${y ?? ''}`);
      expect(await outcomes([pool.delete()])).toEqual(['ok']);
      expect(changes()).toEqual(['pvremove --yes -- /dev/vdx', 'pvremove --yes -- /dev/vdy']);
      tools('', '');
      expect(await outcomes([pool.delete()])).toEqual(['POOL_GONE']);
      expect(changes()).toEqual([]);
    });

    it('and tells when disks are missing, or the group', async () => {
      process.env['MISSING'] = '1';
      const pool = await bench.pools.define(parsePool(definition));
      await expect(pool.start()).rejects.toThrow(/lacks 1 of its disks/);
      expect(pool.active()).toBe(null);
      const other = await bench.pools.define(parsePool("<pool type='logical'><name>other</name></pool>"));
      await expect(other.start()).rejects.toMatchObject({ code: 'POOL_GONE' });
    });
  });
});

describe('a file system that is built', () => {
  it('from the command line, as said there', async () => {
    await builtCli();
    const bench = newBench();
    const calls = standIns(bench, { 'mkfs.ext4': 'exit 0', blkid: 'exit 2' });
    await bench.ok(
      ...['pool-define-as', 'f', 'fs', '--source-dev', '/dev/of-nobody', '--source-format', 'ext4'],
      ...['--target', bench.at('f')],
    );
    await bench.ok('pool-build', 'f');
    expect(calls()).toEqual([]);
    const both = await bench.cli('pool-build', 'f', '--overwrite', '--no-overwrite');
    expect(both.code).toBe(1);
    expect(both.stderr).toMatch(/exclude each other/);
    await bench.ok('pool-build', 'f', '--no-overwrite');
    expect(calls().map((call) => call.split(' ')[0])).toEqual(['blkid', 'mkfs.ext4']);
    await bench.ok('pool-build', 'f', '--overwrite');
    expect(calls().map((call) => call.split(' ')[0])).toEqual(['blkid', 'mkfs.ext4', 'mkfs.ext4']);
  });

  it.each([
    ['ext4', 'mkfs.ext4 -F -- /dev/of-nobody'],
    ['xfs', 'mkfs.xfs -f -- /dev/of-nobody'],
    ['vfat', 'mkfs.vfat -I -- /dev/of-nobody'],
  ])('of format %s has its device behind all options', async (format, call) => {
    const bench = newBench();
    const calls = standIns(bench, { [`mkfs.${format}`]: 'exit 0', blkid: 'exit 2' });
    const xml = `<pool type='fs'><name>f</name><source><device path='/dev/of-nobody'/><format type='${format}'/></source><target><path>${bench.at('f')}</path></target></pool>`;
    await (await bench.pools.define(parsePool(xml))).build('no-overwrite');
    expect(calls().at(-1)).toBe(call);
    for (const device of ['-F', '--help', 'sda', '../dev/sda'])
      expect(() => parsePool(xml.replace('/dev/of-nobody', device))).toThrow(/must be absolute/);
  });
});

describeUnlessMissing('a volume group that is built over a device in use', noLoop(), () => {
  it('is refused before anything is written', async () => {
    const bench = newBench();
    const calls = standIns(bench, { pvcreate: '', vgcreate: '', pvremove: '' });
    const [free, used] = [64, 65].map((byte) => attachLoop(new Uint8Array(16 * 1024 ** 2).fill(byte)));
    try {
      execFileSync('mkfs.ext4', ['-q', '-F', used?.path ?? '']);
      const target = join(bench.root, 'mounted');
      mkdirSync(target);
      execFileSync('mount', [used?.path ?? '', target]);
      try {
        const devices = [free, used].map((loop) => `<device path='${loop?.path ?? ''}'/>`).join('');
        const pool = await bench.pools.define(
          parsePool(`<pool type='logical'><name>vg</name><source>${devices}</source></pool>`),
        );
        expect(await outcomes([pool.build('overwrite')])).toEqual(['IN_USE']);
      } finally {
        execFileSync('umount', [target]);
      }
      expect(calls()).toEqual([]);
      expect(execFileSync('head', ['-c', '4', free?.path ?? '']).toString()).toBe('@@@@');
      execFileSync('e2fsck', ['-fn', used?.path ?? ''], { stdio: 'ignore' });
    } finally {
      free?.detach();
      used?.detach();
    }
  });
});

describe('iscsi', () => {
  const xml = (more = ''): string =>
    `<pool type='iscsi'><name>i</name><source><host name='san'/><device path='iqn.2024-01.lab:t1'/>${more}</source><target><path>/dev/disk/by-path</path></target></pool>`;
  const SESSION = 'tcp: [3] 10.0.0.1:3260,1 iqn.2024-01.lab:t1 (non-flash)';

  it('takes a secret from a file that is one, and private', async () => {
    const bench = newBench();
    const calls = standIns(bench, { iscsiadm: 'exit 21', udevadm: 'exit 0' });
    const auth = "<auth type='chap' username='joe'><secret usage='lab'/></auth>";
    const held = await bench.pools.define(parsePool(xml(auth)));
    mkdirSync(bench.home.secrets);
    const path = join(bench.home.secrets, 'lab');
    const started = (): Promise<string[]> => outcomes([held.start()]);
    // Nobody writes to this one: who waits for it waits for ever.
    execFileSync('mkfifo', ['-m', '600', path]);
    expect(await started()).toEqual(['BAD_SECRET']);
    rmSync(path);
    mkdirSync(path, { mode: 0o700 });
    expect(await started()).toEqual(['BAD_SECRET']);
    rmdirSync(path);
    writeFileSync(path, 'x'.repeat(5000), { mode: 0o600 });
    expect(await started()).toEqual(['BAD_SECRET']);
    rmSync(path);
    writeFileSync(path, 'secretsecret12', { mode: 0o640 });
    expect(await started()).toEqual(['PERMISSION']);
    expect(calls().filter((call) => !call.includes('--mode session'))).toEqual([]);
  });

  it('logs in with the secret of its definition, which is never shown', async () => {
    const bench = newBench();
    const auth = "<auth type='chap' username='joe'><secret usage='lab'/></auth>";
    const calls = standIns(bench, {
      iscsiadm: `case "$*" in *"--mode session"*) exit 21;; *--login*) echo "login failed: 24 - s3cretpass?" >&2; exit 24;; esac`,
      udevadm: '',
    });
    const pool = await bench.pools.define(parsePool(xml(auth)));
    await expect(pool.start()).rejects.toMatchObject({ code: 'BAD_SECRET' });
    mkdirSync(bench.home.secrets);
    const path = join(bench.home.secrets, 'lab');
    writeFileSync(path, 's3cretpass\n');
    chmodSync(path, 0o644);
    await expect(pool.start()).rejects.toMatchObject({ code: 'PERMISSION' });
    chmodSync(path, 0o600);
    await expect(pool.start()).rejects.toThrow(/exit 24\): login failed: 24 - \(hidden\)\?$/);
    const node = 'iscsiadm --mode node --portal san:3260 --targetname iqn.2024-01.lab:t1';
    expect(calls().filter((line) => !line.includes('--mode session'))).toEqual([
      `${node} --op new`,
      `${node} --op update --name node.session.auth.authmethod --value CHAP`,
      `${node} --op update --name node.session.auth.username --value joe`,
      `${node} --op update --name node.session.auth.password --value s3cretpass`,
      `${node} --login`,
      // What did not log in leaves nothing behind, and not the secret.
      `${node} --op delete`,
    ]);
  });

  it('lists disks by names that stay', async () => {
    const bench = newBench();
    standIns(bench, {
      iscsiadm: `echo '${SESSION}'`,
      scsi_id: 'echo 360000000000000000e00000000010001',
      udevadm: '',
    });
    const device = join(bench.root, 'sys', 'class', 'iscsi_session', 'session3', 'device', 'target2:0:0');
    for (const [address, type, node] of [
      ['2:0:0:0', '12', ''],
      ['2:0:0:1', '0', 'sdq'],
      ['2:0:0:2', '0', 'sdr'],
    ] as const) {
      mkdirSync(join(device, address, ...(node === '' ? [] : ['block', node])), { recursive: true });
      writeFileSync(join(device, address, 'type'), `${type}\n`);
      if (node !== '') writeFileSync(join(device, address, 'block', node, 'size'), '2048\n');
    }
    // As in the kernel's tree, there are other files beside the addresses.
    writeFileSync(join(device, 'uevent'), '');
    const names = join(bench.root, 'by-path');
    mkdirSync(names);
    writeFileSync(join(bench.root, 'sdq'), '');
    symlinkSync('../sdq', join(names, 'ip-10.0.0.1:3260-iscsi-iqn.2024-01.lab:t1-lun-1'));
    const pool: PoolDefinition = { ...parsePool(xml()), target: { path: names } };
    const backend = iscsiBackendAt({ sys: join(bench.root, 'sys'), patience: 0 });
    // The second disk has no name that stays.
    expect(await backend.volumes({ pool, home: bench.home })).toEqual([
      {
        name: 'unit:0:0:1',
        key: '360000000000000000e00000000010001',
        path: join(names, 'ip-10.0.0.1:3260-iscsi-iqn.2024-01.lab:t1-lun-1'),
        ...{ type: 'block', capacity: 1024 ** 2, allocation: 1024 ** 2, physical: 1024 ** 2, format: 'raw' },
      },
    ]);
    expect(await backend.usage({ pool, home: bench.home })).toEqual({
      capacity: 1024 ** 2,
      allocation: 1024 ** 2,
      available: 0,
    });
    expect(parseSessions(`${SESSION}\n`)).toEqual([{ id: '3', target: 'iqn.2024-01.lab:t1' }]);
    expect(backend.createVolume).toBe(undefined);
  });

  it('finds the targets of a portal', async () => {
    const bench = newBench();
    const calls = standIns(bench, {
      iscsiadm: "printf '10.0.0.1:3260,1 iqn.a:b\\n[fe80::1]:3260,1 iqn.a:b\\n10.0.0.1:3260,1 iqn.a:c\\n'",
    });
    expect((await bench.pools.sources('iscsi', { host: 'san' })).map(({ devices }) => devices)).toEqual([
      ['iqn.a:b'],
      ['iqn.a:c'],
    ]);
    expect(calls()).toEqual([
      'iscsiadm --mode discovery --type sendtargets --portal san:3260 --op nonpersistent',
    ]);
    for (const port of [NaN, 0, 1.5, 65536])
      expect(await outcomes([bench.pools.sources('iscsi', { host: 'san', port })])).toEqual(['BAD_OPTION']);
    expect(calls()).toHaveLength(1);
  });
});

describe('a forecast', () => {
  const HOUR = 3_600_000;
  const usage = { capacity: 1000, allocation: 400, available: 600 };
  const at = (hours: number, allocation: number): Sample => ({
    time: hours * HOUR,
    capacity: 1000,
    allocation,
    available: 1000 - allocation,
  });

  it('follows the line through the samples', () => {
    const told = forecast([at(0, 100), at(10, 200), at(20, 300), at(30, 400)], usage, 30 * HOUR);
    expect(told.growth).toBeCloseTo(240, 6);
    expect(told.full).toBeCloseTo(90 * HOUR, 0);
  });

  it('says so where the pool does not fill, and where too little is known', () => {
    expect(forecast([at(0, 400), at(10, 300)], usage, 10 * HOUR).full).toBe(null);
    expect(forecast([at(0, 400)], usage, 10 * HOUR)).toMatchObject({ growth: null, full: null });
    expect(forecast([], usage, 0)).toMatchObject({ samples: 0, growth: null, full: null });
    expect(forecast([at(0, 1), at(0.01, 900)], usage, HOUR)).toMatchObject({ growth: null });
  });
});
