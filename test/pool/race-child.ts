// Races: one of several processes that do the same to a pool at once. Reads lines `ROUND VERB`, answers `ROUND CODE`.
import { createInterface } from 'node:readline';
import { join } from 'node:path';
import { parsePool } from '../../src/pool/definition.ts';
import { Pools } from '../../src/pool/index.ts';

const [root = ''] = process.argv.slice(2);
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

const DO: Readonly<Record<string, (round: string) => Promise<unknown>>> = {
  define: () => pools.define(parsePool(xml)),
  create: () => pools.create(parsePool(xml), { build: 'plain' }),
  start: () => pools.find('r').start({ build: 'plain' }),
  destroy: () => pools.find('r').destroy(),
  undefine: () => pools.find('r').undefine(),
  autostart: (round) => pools.find('r').setAutostart(Number(round) % 2 === 0),
  refresh: () => pools.find('r').refresh(),
  volume: (round) => pools.find('r').createVolume({ name: `v${round}`, capacity: 65536, format: 'qcow2' }),
  clone: async (round) => {
    const pool = pools.find('r');
    return pool.createVolumeFrom({ name: `v${round}`, capacity: 0 }, await pool.volume('base'));
  },
  remove: async (round) => (await pools.find('r').volume(`v${round}`)).delete(),
  guard: () => pools.find('r').setGuard(65536),
};

for await (const line of createInterface({ input: process.stdin })) {
  const [round = '', verb = ''] = line.split(' ');
  const code = await Promise.resolve()
    .then(() => DO[verb]?.(round))
    .then(
      () => 'ok',
      (error: unknown) => String((error as { code?: unknown }).code ?? error),
    );
  process.stdout.write(`${round} ${code}\n`);
}
