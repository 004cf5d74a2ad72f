// Called as qemu-img: the same command lines for it and for the real one, each on images of its own.
import {
  cpSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import { beforeAll, expect, it } from 'vitest';
import { expectComplaint, said } from '../tool/beside.ts';
import { builtCli, MAIN, spindle } from '../tool/cli.ts';
import * as qemu from '../tool/qemu.ts';
import { tempDir } from '../tool/temp.ts';

const MIB = 1024 ** 2;

let images = '';
let main = '';

beforeAll(async () => {
  await builtCli();
  main = join(tempDir(), 'qemu-img');
  symlinkSync(MAIN, main);
  if (qemu.qemuMissing() === undefined) await makeImages();
}, 120_000);

async function makeImages(): Promise<void> {
  images = tempDir();
  const cwd = images;
  for (const [name, pattern] of [
    ['base.qcow2', 1],
    ['other.qcow2', 2],
  ] as const) {
    await qemu.create(join(cwd, name), 4 * MIB, { format: 'qcow2' });
    await qemu.fill(join(cwd, name), [{ do: 'write', at: 0, length: MIB, pattern }]);
  }
  await qemu.qemuImg(['create', '-q', '-f', 'qcow2', '-b', 'base.qcow2', '-F', 'qcow2', 'top.qcow2'], {
    cwd,
  });
  await qemu.fill(join(cwd, 'top.qcow2'), [{ do: 'write', at: 65_536, length: 200_704, pattern: 3 }]);
  await qemu.snapshot(join(cwd, 'top.qcow2'), 'create', 'one');
  await qemu.fill(join(cwd, 'top.qcow2'), [{ do: 'write', at: 2 * MIB, length: 4096, pattern: 4 }]);
  await qemu.create(join(cwd, 'r.raw'), 4 * MIB, { format: 'raw' });
  await qemu.fill(join(cwd, 'r.raw'), [{ do: 'write', at: MIB, length: 65_536, pattern: 7 }], {
    format: 'raw',
  });
  writeFileSync(join(cwd, 'odd,name.raw'), Buffer.alloc(MIB, 9));
  mkdirSync(join(cwd, 'sub'));
}

/** A folder with copies of the images; holes stay holes. */
async function workshop(): Promise<string> {
  const folder = tempDir();
  for (const name of readdirSync(images)) {
    if (statSync(join(images, name)).isDirectory())
      cpSync(join(images, name), join(folder, name), { recursive: true });
    else await qemu.copyFixture(join(images, name), join(folder, name), true);
  }
  return folder;
}

/** Command lines, with the exit code where ours is another on purpose. An empty word is an empty argument. */
const LINES: readonly (readonly [line: string, ours?: number])[] = [
  ['info r.raw extra'],
  ['info'],
  ['info absent'],
  ['info -f qcow2 r.raw'],
  ['info -f foo r.raw'],
  ['info --output=xml r.raw'],
  ['info --output xml r.raw'],
  ['info --badopt r.raw'],
  ['info --outp=json r.raw'],
  ['info -U -f raw r.raw'],
  ['info -Uf raw r.raw'],
  ['info -Ufraw r.raw'],
  ['info --backing-chain --output=json top.qcow2'],
  ['info foo:bar'],
  ['info ./foo:bar'],
  ['info json:{'],
  ['info json:[]'],
  ['info sub'],
  ['map r.raw extra'],
  ['map --start-offset=1M --max-length=1M top.qcow2'],
  ['map -s 1k5 top.qcow2'],
  ['map --start-offset=8E top.qcow2'],
  ['map --start-offset=-1 top.qcow2'],
  ['map --start-offset=5M top.qcow2'],
  ['map --max-length=-1 top.qcow2'],
  ['map --max-length=0 top.qcow2'],
  ['map --output=xml top.qcow2'],
  ['check r.raw'],
  ['check -f raw r.raw'],
  ['check absent'],
  ['check --output=foo top.qcow2'],
  ['check -r foo top.qcow2'],
  ['check -q top.qcow2'],
  ['check -T foo top.qcow2'],
  ['check --output=json top.qcow2'],
  ['check top.qcow2 extra'],
  ['check'],
  ['compare r.raw', 2],
  ['compare r.raw r.raw'],
  ['compare r.raw r.raw r.raw', 2],
  ['compare r.raw absent'],
  ['compare absent r.raw'],
  ['compare r.raw top.qcow2'],
  ['compare -f qcow2 r.raw top.qcow2'],
  ['compare -T foo r.raw r.raw'],
  ['compare -s r.raw top.qcow2'],
  ['compare -F foo r.raw r.raw'],
  ['compare --badopt r.raw r.raw', 2],
  ['compare -p -q r.raw r.raw'],
  ['compare -pq r.raw r.raw'],
  ['measure -O qcow2 --size 1G'],
  ['measure -O qcow2 --size=1G --output=json'],
  ['measure -O raw r.raw'],
  ['measure --size 1G r.raw'],
  ['measure'],
  ['measure -O foo --size 1G'],
  ['measure --size -1'],
  ['measure --size 1k5'],
  ['measure --size 8E'],
  ['measure -O qcow2 --size 1T -o cluster_size=512'],
  ['measure -O qcow2 -o cluster_size=3 --size 1G'],
  ['measure -l absent base.qcow2'],
  ['measure --size 1G -f raw'],
  ['measure --image-opts driver=qcow2,file.filename=base.qcow2'],
  ['snapshot -l r.raw'],
  ['snapshot -l base.qcow2'],
  ['snapshot base.qcow2'],
  ['snapshot -d absent base.qcow2'],
  ['snapshot -a absent base.qcow2'],
  ['snapshot -c a -d b base.qcow2'],
  ['snapshot -l -c b base.qcow2'],
  ['snapshot -c x r.raw'],
  ['snapshot'],
  ['snapshot -l absent'],
  ['snapshot -U -l base.qcow2'],
  ['snapshot -q -l base.qcow2'],
  ['snapshot -l base.qcow2 extra'],
  ['bitmap --add base.qcow2'],
  ['bitmap base.qcow2 b'],
  ['bitmap --remove base.qcow2 b'],
  ['bitmap --add r.raw b'],
  ['bitmap --add -g 3 base.qcow2 b'],
  ['bitmap --add -g 1k5 base.qcow2 b'],
  ['bitmap --merge x base.qcow2 b'],
  ['bitmap --clear base.qcow2 b'],
  ['bitmap -b x --add base.qcow2 b'],
  ['amend base.qcow2'],
  ['amend -o foo=1 base.qcow2'],
  ['amend -o compat=9 base.qcow2'],
  ['amend -f raw -o size=1 r.raw'],
  ['amend -o size=1M absent'],
  ['amend -t foo -o compat=1.1 base.qcow2'],
  ['amend -o cluster_size=4k base.qcow2'],
  ['amend -o , base.qcow2'],
  ['amend -o compat=1.1, base.qcow2'],
  ['rebase'],
  ['rebase base.qcow2'],
  ['rebase -b absent -F qcow2 top.qcow2'],
  ['rebase -F foo -b base.qcow2 top.qcow2'],
  ['rebase -b base.qcow2 top.qcow2 extra'],
  ['rebase -t foo -b base.qcow2 -F qcow2 top.qcow2'],
  ['rebase -T foo -b base.qcow2 -F qcow2 top.qcow2'],
  ['rebase -b base.qcow2 -F qcow2 r.raw'],
  ['commit'],
  ['commit absent'],
  ['commit base.qcow2'],
  ['commit r.raw'],
  ['commit -b absent top.qcow2'],
  ['commit -t foo top.qcow2'],
  ['commit -r foo top.qcow2'],
  ['commit top.qcow2 extra'],
  ['resize r.raw'],
  ['resize r.raw 1k5'],
  ['resize r.raw 0'],
  ['resize r.raw -1G'],
  ['resize r.raw +8E'],
  ['resize r.raw 8E'],
  ['resize r.raw -9999'],
  ['resize r.raw 1M'],
  ['resize absent 1M'],
  ['resize --preallocation=foo r.raw 8M'],
  ['resize -f raw r.raw 1 G'],
  ['resize -f raw r.raw 4M'],
  ['resize -f raw r.raw +0'],
  ['resize -f raw r.raw ++1M'],
  ['resize -f raw r.raw 1e3'],
  ['resize --shrink -f raw r.raw +'],
  ['resize'],
  ['dd if=r.raw'],
  ['dd if=r.raw of=o1 bs=0'],
  ['dd if=r.raw of=o1 bs=3G'],
  ['dd if=r.raw of=o1 bs=1k5'],
  ['dd if=r.raw of=o1 count=-1'],
  ['dd if=r.raw of=o1 foo=1'],
  ['dd if=r.raw of=o1 foo'],
  ['dd if=absent of=o1'],
  ['dd if=r.raw of=o1 bs=1M count=2 skip=1'],
  ['dd -f qcow2 if=r.raw of=o1'],
  ['dd -O foo if=r.raw of=o1'],
  ['dd if=r.raw of=o1 bs=1M skip=100'],
  ['dd -n if=r.raw of=o1'],
  ['bench -c 0 r.raw'],
  ['bench -c 1 -d 0 r.raw'],
  ['bench -c foo r.raw'],
  ['bench -t foo r.raw'],
  ['bench -c 10 -S 1k5 r.raw'],
  ['bench -c 10 -o 8E r.raw'],
  ['bench -w --pattern=300 -c 1 r.raw'],
  ['bench --flush-interval=1 -c 1 r.raw'],
  ['bench --no-drain -c 1 r.raw'],
  ['bench -c 1 -i foo r.raw'],
  ['bench -c 1 absent'],
  ['create'],
  ['create c1'],
  ['create c1 1M extra'],
  ['create -f foo c1 1M'],
  ['create -f qcow2 -o foo=1 c1 1M'],
  ['create -f qcow2 -o cluster_size=3 c1 1M'],
  ['create -f qcow2 -o , c1 1M'],
  ['create -f qcow2 -o cluster_size=4k, c1 1M'],
  ['create -f qcow2 -o ,cluster_size=4k c1 1M'],
  ['create -f qcow2 -b base.qcow2 c1'],
  ['create -f qcow2 -b base.qcow2 -F foo c1'],
  ['create -f qcow2 -b absent -F qcow2 c1'],
  ['create -f qcow2 -b absent -F qcow2 c1 1M'],
  ['create -f qcow2 -u -b absent -F qcow2 c1 1M'],
  ['create -f qcow2 -u -b absent -F qcow2 c1'],
  ['create -f raw -b base.qcow2 -F qcow2 c1'],
  ['create -f qcow2 -F qcow2 c1 1M'],
  ['create -f qcow2 c1 -1'],
  ['create -f raw c1 1.5G'],
  ['create -f raw c1 1.5'],
  ['create -f raw c1 0x10'],
  ['create -f raw c1 0x1k'],
  ['create -f raw c1 1e3'],
  ['create -f raw c1 10b'],
  ['create -f raw c1 1T'],
  ['create -f raw c1 8E'],
  ['create -f raw c1 1kk'],
  ['create -f raw c1 1K'],
  ['create -f raw c1 1KB'],
  ['create -f raw c1 1KiB'],
  ['create -f raw c1 .5M'],
  ['create -f raw c1 5.M'],
  ['create -f raw c1 1.5b'],
  ['create -f raw c1 +5'],
  ['create -f raw c1 0'],
  ['create -f raw c1 010'],
  ['create -f raw c1 1k5'],
  ['create -f raw c1 1G1'],
  ['create -f raw c1 inf'],
  ['create -f raw c1 nan'],
  ['create -f qcow2 -o size=2M c1'],
  ['create -f qcow2 -o size=2M c1 1M'],
  ['create -f qcow2 -o preallocation=foo c1 1M'],
  ['create -f qcow2 -o compat=2 c1 1M'],
  ['create -f qcow2 -o lazy_refcounts=maybe c1 1M'],
  ['create -f qcow2 -o encrypt.format=luks c1 1M'],
  ['create -f qcow2 -o encrypt.format=luks,encrypt.key-secret=x c1 1M'],
  ['create -f qcow2 --object secret,id=x c1 1M'],
  ['create -f qcow2 --object foo,id=x c1 1M'],
  ['create -f qcow2 json:{} 1M'],
  ['create -f qcow2 file:c1 1M'],
  ['create -f qcow2 foo:c1 1M'],
  ['create -f qcow2 absent/c1 1M'],
  ['create -qf raw c1 1M'],
  ['create -fqcow2 c1 1M'],
  ['create --format=qcow2 --quiet c1 1M'],
  ['create --form qcow2 c1 1M'],
  ['convert r.raw'],
  ['convert'],
  ['convert r.raw absent/x'],
  ['convert absent x1'],
  ['convert -O foo r.raw x1'],
  ['convert -f qcow2 r.raw x1'],
  ['convert -O qcow2 -o foo=1 r.raw x1'],
  ['convert -c r.raw x1'],
  ['convert -c -O qcow2 r.raw x1'],
  ['convert -n r.raw absent'],
  ['convert -n -O raw r.raw c1'],
  ['convert -O qcow2 -B base.qcow2 r.raw x1'],
  ['convert -O qcow2 -B base.qcow2 -F qcow2 top.qcow2 x1'],
  ['convert -O qcow2 -B absent -F qcow2 top.qcow2 x1'],
  ['convert -O raw -B base.qcow2 -F qcow2 top.qcow2 x1'],
  ['convert --target-is-zero r.raw x1'],
  ['convert --target-image-opts r.raw x1'],
  ['convert -n --target-image-opts r.raw driver=raw,file.filename=c1'],
  ['convert -n --target-image-opts -O raw r.raw driver=raw,file.filename=c1'],
  ['convert -S 1k5 r.raw x1'],
  ['convert -S 100 r.raw x1'],
  ['convert -S 64k r.raw x1'],
  ['convert -S 32M r.raw x1'],
  ['convert -S 0 r.raw x1'],
  ['convert -m 0 r.raw x1'],
  ['convert -m 17 r.raw x1'],
  ['convert -m 4 -W r.raw x1'],
  ['convert -m foo r.raw x1'],
  ['convert -r 0 r.raw x1'],
  ['convert -r foo r.raw x1'],
  ['convert -r 10M r.raw x1'],
  ['convert -t foo r.raw x1'],
  ['convert -T foo r.raw x1'],
  ['convert -t none -T none r.raw x1'],
  ['convert -t directsync -T directsync r.raw x1'],
  ['convert -l absent base.qcow2 x1'],
  ['convert -l snapshot.id=1 base.qcow2 x1'],
  ['convert -C -S 4k r.raw x1'],
  ['convert -C r.raw x1'],
  ['convert -C -c -O qcow2 r.raw x1'],
  ['convert --salvage r.raw x1'],
  ['convert -U r.raw x1'],
  ['convert r.raw r.raw x1'],
  ['convert -O qcow2 r.raw base.qcow2 x1'],
  ['convert -p -q r.raw x1'],
  ['convert -pq -Oqcow2 r.raw x1'],
  ['convert --salvage -C r.raw x1'],
  ['convert --salvage -B base.qcow2 -F qcow2 -O qcow2 top.qcow2 x1'],
  ['convert -s foo base.qcow2 x1'],
  ['foo'],
  ['convert -n -o cluster_size=4k -O raw r.raw c1'],
  ['convert --skip-broken-bitmaps -O qcow2 r.raw x1'],
  ['convert -W r.raw x1'],
  ['info -- r.raw'],
  ['info r.raw --output=json'],
  ['info -f'],
  ['create -f qcow2 -o backing_file=odd,,name.raw,backing_fmt=raw c1'],
  ['create -f qcow2 -b odd,name.raw -F raw c1'],
  ['create -f qcow2 --options=cluster_size=4k c1 1M'],
  ['create -f qcow2 -o cluster_size=4k -o extended_l2=off c1 1M'],
  ['info -f qcow2 --output json -b top.qcow2'],
  ['convert -O qcow2 -o cluster_size=4k,compat=0.10 top.qcow2 x1'],
  ['convert -O qcow2 -c top.qcow2 x1'],
  ['convert -O qcow2 -o extended_l2=on,cluster_size=32k top.qcow2 x1'],
  ['convert -O qcow2 -o data_file=x1.raw top.qcow2 x1'],
  ['convert -l one top.qcow2 x1'],
  ['convert -l snapshot.name=one top.qcow2 x1'],
  ['snapshot -a one top.qcow2'],
  ['snapshot -d one top.qcow2'],
  ['snapshot -l top.qcow2'],
  ['commit top.qcow2'],
  ['commit -d top.qcow2'],
  ['commit -b base.qcow2 -p top.qcow2'],
  ['rebase -b other.qcow2 -F qcow2 top.qcow2'],
  ['rebase -u -b other.qcow2 -F qcow2 top.qcow2'],
  ['rebase -p -c -b other.qcow2 -F qcow2 top.qcow2'],
  ['rebase -b  top.qcow2'],
  ['resize top.qcow2 +1M'],
  ['resize -q top.qcow2 +1M'],
  ['resize --shrink -f raw r.raw 1M'],
  ['resize -f raw --preallocation=full r.raw 5M'],
  ['bitmap --add base.qcow2 b'],
  ['bitmap --add -g 4k --disable base.qcow2 b'],
  ['amend -o compat=0.10 base.qcow2'],
  ['amend -q -p -o lazy_refcounts=on base.qcow2'],
  ['amend -o size=8M base.qcow2'],
  ['amend -f qcow2 -o compat=v3,lazy_refcounts=on base.qcow2'],
];

/** Files that hold an image and may be compared. */
async function expectSameFiles(ours: string, theirs: string): Promise<void> {
  expect(readdirSync(ours).sort()).toEqual(readdirSync(theirs).sort());
  for (const name of readdirSync(ours)) {
    const [mine, other] = [join(ours, name), join(theirs, name)];
    if (statSync(mine).isDirectory()) continue;
    const small = statSync(mine).size < 16 * MIB;
    if (small && readFileSync(mine).equals(readFileSync(other))) continue;
    const options = { expect: 'any' } as const;
    const magic = small ? readFileSync(mine).subarray(0, 4).toString('latin1') : '';
    const format = magic === 'QFI\u00fb' ? 'qcow2' : 'raw';
    const args = ['compare', '-f', format, '-F', format, mine, other];
    const compared = await qemu.qemuImg(args, options);
    expect(compared.code, `${name}: ${compared.stdout}${compared.stderr}`).toBe(0);
    if (format === 'qcow2') {
      expect((await qemu.qemuImg(['check', '-q', '-f', format, mine], options)).code, name).toBe(0);
      const [a, b] = await Promise.all([mine, other].map((path) => qemu.info(path)));
      const own = (info: unknown): unknown => ({
        ...(info as object),
        ...{ filename: 0, children: 0, 'actual-size': 0, 'full-backing-filename': 0, snapshots: 0 },
      });
      expect(own(a)).toEqual(own(b));
    }
  }
}

qemu.describeWithQemu('beside qemu-img', () => {
  it.each(LINES.map(([line, code]) => ({ line, code })))('$line', async ({ line, code }) => {
    const args = line.split(' ');
    const [mine, other] = [await workshop(), await workshop()];
    const theirs = await qemu.qemuImg(args, { cwd: other, expect: 'any' });
    const ours = await spindle(args, { cwd: mine, main });
    expect(ours.code, `${ours.stderr}\n${theirs.stderr}`).toBe(code ?? theirs.code);
    expectComplaint(ours);
    expect(ours.stderr === '', ours.stderr).toBe(theirs.stderr === '');
    if (theirs.code !== 0) return;
    expect(said(ours.stdout)).toEqual(said(theirs.stdout));
    await expectSameFiles(mine, other);
  });

  it('lists the options of a new image that qemu-img has', async () => {
    for (const [format, verb] of [
      ['qcow2', 'create'],
      ['luks', 'create'],
      ['qcow2', 'amend'],
      ['qcow2', 'convert'],
    ] as const) {
      const flag = verb === 'convert' ? '-O' : '-f';
      const [ours, theirs] = await Promise.all([
        spindle([verb, flag, format, '-o', 'help'], { main }),
        qemu.qemuImg([verb, flag, format, '-o', 'help'], { expect: 'any' }),
      ]);
      expect({ code: ours.code, theirs: theirs.code }).toEqual({ code: 0, theirs: 0 });
      const names = (text: string): string[] =>
        Array.from(text.matchAll(/^ {2}([a-z][\w.-]*)=/gm), (m) => m[1] ?? '');
      const missing = names(theirs.stdout).filter((name) => !names(ours.stdout).includes(name));
      expect(names(theirs.stdout).length).toBeGreaterThan(5);
      // A LUKS header apart from its data is not in this version.
      expect(missing).toEqual(format === 'luks' ? ['detached-header'] : []);
    }
    expect(existsSync(images)).toBe(true);
  });
});
