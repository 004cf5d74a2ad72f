import { POOL_VERBS } from '../pool/pool-verbs.ts';
import { verbGroup } from '../pool/spec.ts';

/** The command line of `pool`, and of all verbs `pool-...`. */
export const { define, run } = verbGroup(
  'pool',
  'Define, start, inspect and remove storage pools. The verbs are those of virsh.',
  POOL_VERBS,
  [
    ['define-as images dir --target /srv/images', 'a directory as a pool'],
    ['start images --build', 'make the directory, and start the pool'],
    ['list --all', 'all pools'],
  ],
);
