// Every mistake gives one line on standard error, exit code 1, nothing on standard output, and changes no file.
import { execFileSync, spawn } from 'node:child_process';
import {
  chmodSync,
  chownSync,
  mkdirSync,
  readFileSync,
  readdirSync,
  statSync,
  truncateSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import { beforeAll, describe, expect, it } from 'vitest';
import { builtCli, spindle, type CliOptions } from '../tool/cli.ts';
import { FIXTURES } from '../tool/fixtures.ts';
import * as qemu from '../tool/qemu.ts';
import { tempDir } from '../tool/temp.ts';

let folder = '';

beforeAll(async () => {
  await builtCli();
  folder = tempDir();
  writeFileSync(join(folder, 'text.img'), 'this is no image\n'.repeat(100));
  writeFileSync(join(folder, 'some.img'), 'keep me');
  mkdirSync(join(folder, 'directory'));
  execFileSync('mkfifo', [join(folder, 'fifo')]);
  writeFileSync(join(folder, 'good.qcow2'), readFileSync(join(FIXTURES, 'good', 'v3.qcow2')));
  writeFileSync(join(folder, 'cut.qcow2'), readFileSync(join(FIXTURES, 'good', 'v3.qcow2')));
  truncateSync(join(folder, 'cut.qcow2'), 60);
  writeFileSync(
    join(folder, 'unknown.qcow2'),
    readFileSync(join(FIXTURES, 'bad', 'UNKNOWN_FEATURE-bit-5.qcow2')),
  );
  writeFileSync(
    join(folder, 'orphan.qcow2'),
    readFileSync(join(FIXTURES, 'bad', 'BACKING_NOT_FOUND-missing.qcow2')),
  );
}, 120_000);

/** The names, sizes, times and contents of all files. */
function snapshot(): unknown {
  return readdirSync(folder, { withFileTypes: true })
    .filter((entry) => entry.isFile())
    .map(({ name }) => [
      name,
      statSync(join(folder, name)).mtimeMs,
      readFileSync(join(folder, name), 'base64'),
    ]);
}

async function expectRefusal(args: readonly string[], says: RegExp, options: CliOptions = {}): Promise<void> {
  const before = snapshot();
  const result = await spindle(args, { cwd: folder, ...options });
  expect(result.stdout).toBe('');
  expect(result.stderr).toMatch(/^spindle: [^\n]+\n$/);
  expect(result.stderr).toMatch(says);
  expect(result.stderr).not.toMatch(/internal error|\bat .*\.[cm]?js:\d/);
  expect(result.code).toBe(1);
  expect(snapshot()).toEqual(before);
}

const CASES: readonly (readonly [args: string, says: RegExp])[] = [
  // not what it should be
  ['info -f qcow2 text.img', /^spindle: text\.img: /],
  ['map -f qcow2 text.img', /text\.img/],
  ['check -f qcow2 text.img', /text\.img/],
  ['snapshot -f qcow2 text.img', /text\.img/],
  ['info cut.qcow2', /cut\.qcow2/],
  ['map cut.qcow2', /cut\.qcow2/],
  ['check cut.qcow2', /cut\.qcow2/],
  ['info unknown.qcow2', /unknown\.qcow2: .*feature/],
  ['check unknown.qcow2', /feature/],
  ['map orphan.qcow2', /orphan\.qcow2: its backing file .* no such file/],
  ['info --backing-chain orphan.qcow2', /backing file/],
  ['info absent.qcow2', /no such file/],
  ['info directory', /directory/],
  ['info fifo', /FIFO/],
  ['map fifo', /FIFO/],
  ['check fifo', /FIFO/],
  ['create fifo 1M', /FIFO/],
  ['create directory 1M', /directory/],
  ['create absent/new.img 1M', /no such file or directory/],
  ['create -f qcow2 -b absent -F qcow2 new.qcow2', /absent.*no such file/],
  // sizes
  ['create some.img', /size is needed/],
  ['create some.img 10X', /invalid size '10X'/],
  ['create some.img -5', /invalid size '-5'/],
  ['create some.img -- -5k', /invalid size '-5k'/],
  ['create some.img 1.5', /invalid size/],
  ['create some.img 9P', /8 PiB/],
  ['create some.img 1M -o size=1M', /twice/],
  ['create some.img -o size=abc', /size/],
  ['map -s 1Q good.qcow2', /size/],
  // options
  ['create --frobnicate some.img 1M', /--frobnicate/],
  ['create --formt qcow2 some.img 1M', /--format/],
  ['create -f vmdk some.img 1M', /vmdk.*raw, qcow2/],
  ['create -f qcow2 -o clustersize=4k some.img 1M', /clustersize.*did you mean cluster_size/],
  ['create -o cluster_size=4k some.img 1M', /cluster_size.*raw/],
  ['create -f qcow2 -o cluster_size=1000 some.img 1M', /power of two/],
  ['create -f qcow2 -o cluster_size some.img 1M', /needs a value/],
  ['create -f qcow2 -o nocluster_size some.img 1M', /nocluster_size/],
  ['create -f qcow2 -o extended_l2=maybe some.img 1M', /on or off/],
  ['create -f qcow2 -o refcount_bits=3 some.img 1M', /refcount_bits/],
  ['create -f qcow2 -o refcount_bits=x some.img 1M', /number/],
  ['create -f qcow2 -o preallocation=half some.img 1M', /off, metadata, falloc or full/],
  ['create -f qcow2 -o compat=1.2 some.img 1M', /compat/],
  ['create -f qcow2 -o ,size=1M some.img', /empty element/],
  ['create -f qcow2 -o size=1M, some.img', /empty element/],
  ['create -f qcow2 -o =1M some.img', /no name/],
  ['create -f qcow2 -o encrypt.format=luks some.img 1M', /needs a secret/],
  ['create -f qcow2 -o encryption=on some.img 1M', /needs a secret/],
  // contradictions
  ['create -f qcow2 -b good.qcow2 some.img', /-F/],
  ['create -f qcow2 -F qcow2 some.img 1M', /needs a backing file/],
  ['create -f qcow2 -u -b absent -F qcow2 some.img', /size is needed/],
  ['create -f qcow2 -b good.qcow2 -F qcow2 -o backing_file=other some.img', /two different values/],
  ['create -b good.qcow2 -F qcow2 some.img', /raw images have no backing file/],
  ['create -f qcow2 -b good.qcow2 -F qcow2 -o preallocation=full some.img', /exclude each other/],
  ['create -f qcow2 -o compat=0.10,extended_l2=on some.img 1M', /compat=1\.1/],
  ['create -f qcow2 -o data_file_raw=on some.img 1M', /needs data_file/],
  ['create -o preallocation=metadata some.img 1M', /off, falloc or full/],
  ['create --allocation thick-lazy -o preallocation=full some.img 1M', /contradict/],
  ['create --allocation fat some.img 1M', /thin, thick-lazy, thick-eager/],
  ['info --image-opts -f qcow2 driver=qcow2,file.filename=good.qcow2', /exclude each other/],
  ['info --image-opts driver=nbd,server=x', /not in this version/],
  ['info --object tls-creds,id=x good.qcow2', /secret/],
  // the rest of the line
  ['info', /missing required argument/],
  ['info good.qcow2 some.img', /too many arguments/],
  ['info --output xml good.qcow2', /human, json/],
  ['create', /name the file/],
  ['create a b c', /too many arguments/],
  ['check -r all -U good.qcow2', /-U|force-share/],
  ['check -r some good.qcow2', /leaks, all/],
  ['snapshot -d name good.qcow2', /no snapshot 'name'/],
  ['snapshot -a name good.qcow2', /no snapshot 'name'/],
  ['resize good.qcow2', /size/i],
  ['resize good.qcow2 1', /512|shrink/],
  ['resize good.qcow2 -100T', /cannot have/],
  ['bitmap good.qcow2 b', /--add/],
  ['bitmap --add good.qcow2', /BITMAP/],
  ['bitmap --clear good.qcow2 b', /no bitmap 'b'; the image has none/],
  ['bitmap --add -g 1000 good.qcow2 b', /power of two/],
  ['bitmap --add -g 4G good.qcow2 b', /512 to 2G/],
  ['bitmap --add -g many good.qcow2 b', /granularity/],
  ['bitmap --clear -g 4k good.qcow2 b', /goes with --add/],
  ['bitmap --add -b good.qcow2 good.qcow2 b', /goes with --merge/],
  ['bitmap --merge b -F qcow2 good.qcow2 b', /--source-file/],
  ['bitmap --add -U good.qcow2 b', /-U/],
  ['bitmap --add --merge absent good.qcow2 b', /no bitmap 'absent'/],
  ['bitmap --add --merge b -b absent.qcow2 good.qcow2 b', /absent\.qcow2: .*no such file/],
  ['bitmap --add -f raw some.img b', /raw images have no bitmaps/],
  ['doctor absent', /no such file/],
  ['completion tcsh', /bash, zsh, fish/],
  ['', /name a command/],
  ['inof', /did you mean 'info'/],
  ['compair a b', /did you mean 'compare'/],
  ['--verbose', /no option '--verbose'/],
  ['info nbd://localhost/x', /local files/],
];

describe('a mistake', () => {
  it.each(CASES)('spindle %s', async (args, says) => {
    await expectRefusal(
      args.split(' ').filter((word) => word !== ''),
      says,
    );
  });

  it('in the terminal control characters of a name stays on one line', async () => {
    await expectRefusal(['info', 'bad\nname\u001b[2J'], /no such file/);
  });

  it('names the path once', async () => {
    const { stderr } = await spindle(['info', 'absent.qcow2'], { cwd: folder });
    expect(stderr.split('absent.qcow2')).toHaveLength(2);
  });

  it.runIf(process.getuid?.() === 0)('of rights', async () => {
    const locked = join(folder, 'locked');
    mkdirSync(locked);
    writeFileSync(join(locked, 'old.img'), 'old');
    chmodSync(locked, 0o555);
    chmodSync(folder, 0o755);
    await expectRefusal(['create', 'locked/new.img', '1M'], /permission denied/, { uid: 65534 });
    await expectRefusal(['create', 'locked/old.img', '1M'], /permission denied/, { uid: 65534 });
    expect(readFileSync(join(locked, 'old.img'), 'utf8')).toBe('old');
    const secret = join(folder, 'secret.img');
    writeFileSync(secret, 'x');
    chownSync(secret, 0, 0);
    chmodSync(secret, 0o600);
    await expectRefusal(['info', 'secret.img'], /permission denied/, { uid: 65534 });
  });
});

qemu.describeWithQemu('an image in use', () => {
  it('is not replaced, nor read without -U', async () => {
    const path = join(folder, 'busy.qcow2');
    await qemu.create(path, '1M');
    const holder = spawn('qemu-io', ['-f', 'qcow2', path], { stdio: ['pipe', 'pipe', 'ignore'] });
    try {
      holder.stdin.write('write 0 64k\n');
      await new Promise<void>((resolve) =>
        holder.stdout.on('data', (text: Buffer) => {
          if (text.toString().includes('wrote')) resolve();
        }),
      );
      await expectRefusal(['create', '-f', 'qcow2', 'busy.qcow2', '2M'], /busy\.qcow2/);
      await expectRefusal(['info', 'busy.qcow2'], /-U|in use|another/i);
      await expectRefusal(['check', 'busy.qcow2'], /busy\.qcow2/);
      const shared = await spindle(['info', '-U', 'busy.qcow2'], { cwd: folder });
      expect(shared).toMatchObject({ code: 0, stderr: '' });
    } finally {
      holder.stdin.end('quit\n');
      await new Promise((resolve) => holder.once('close', resolve));
    }
  });
});
