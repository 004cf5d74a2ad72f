import { verbGroup } from '../pool/spec.ts';
import { VOL_VERBS } from '../pool/vol-verbs.ts';

/** The command line of `vol`, and of all verbs `vol-...`. */
export const { define, run } = verbGroup(
  'vol',
  'Make, inspect, change and remove volumes of storage pools. The verbs are those of virsh.',
  VOL_VERBS,
  [
    ['create-as images disk.qcow2 20G --format qcow2', 'a volume'],
    ['list images --details', 'all volumes of a pool'],
    ['info disk.qcow2 --pool images', 'one volume'],
  ],
);
