// Races: one of several processes that do things to a pool at once. Reads lines `ROUND VERB`, answers `ROUND CODE`.
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { parsePool } from '../../src/pool/definition.ts';
import { Pools, type Volume } from '../../src/pool/index.ts';

const [root = '', who = ''] = process.argv.slice(2);
const home = {
  config: join(root, 'config'),
  run: join(root, 'run'),
  state: join(root, 'state'),
  secrets: join(root, 'secrets'),
  bootId: 'races',
};
const pools = new Pools({ home });
const path = join(root, 'pools', 'r');
const xml = `<pool type='dir'><name>r</name><target><path>${path}</path></target></pool>`;

const volume = (round: string): Promise<Volume> => pools.find('r').volume(`v${round}`);

/** Counts one more in the definition, as an editor does with the text that it was given. */
async function edit(): Promise<void> {
  const before = pools.find('r').definition();
  if (before === null) throw Object.assign(new Error('no definition'), { code: 'POOL_NOT_FOUND' });
  const mode = (before.target.permissions?.mode ?? 0o700) + 1;
  const edited = { ...before, target: { ...before.target, permissions: { mode } } };
  await pools.define(edited, { instead: before });
}

const DO: Readonly<Record<string, (round: string) => Promise<unknown>>> = {
  define: () => pools.define(parsePool(xml)),
  create: () => pools.create(parsePool(xml), { build: 'plain' }),
  edit,
  build: () => pools.find('r').build(),
  start: () => pools.find('r').start({ build: 'plain' }),
  destroy: () => pools.find('r').destroy(),
  delete: () => pools.find('r').delete(),
  undefine: () => pools.find('r').undefine(),
  autostart: (round) => pools.find('r').setAutostart(Number(round) % 2 === 0),
  refresh: () => pools.find('r').refresh(),
  guard: () => pools.find('r').setGuard(65536),
  volume: (round) => pools.find('r').createVolume({ name: `n${round}`, capacity: 65536, format: 'qcow2' }),
  clone: async (round) => {
    const source = await volume(round);
    const { format } = source.facts;
    return pools.find('r').createVolumeFrom({ name: `c${round}`, capacity: 0, format }, source);
  },
  upload: async (round) => (await volume(round)).upload(join(root, `data${who}`)),
  wipe: async (round) => (await volume(round)).wipe(who === '1' ? 'zero' : 'dod'),
  grow: async (round) => (await volume(round)).resize(32768, { delta: true }),
  allocate: async (round) => (await volume(round)).allocate(who === '1' ? 'thick-lazy' : 'thin'),
  remove: async (round) => (await volume(round)).delete(),
};

for await (const line of createInterface({ input: process.stdin })) {
  const [round = '', verb = ''] = line.split(' ');
  const code = await Promise.resolve()
    .then(() => DO[verb]?.(round) ?? Promise.reject(new Error(`no verb ${verb}`)))
    .then(
      () => 'ok',
      (error: unknown) => {
        const known = (error as { code?: unknown }).code;
        return typeof known === 'string' ? known : `crash:${String(error).replaceAll(/\s/g, '_')}`;
      },
    );
  process.stdout.write(`${round} ${code}\n`);
}
