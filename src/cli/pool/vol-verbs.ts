import type { PoolVerb } from './spec.ts';
import { VOL_CHANGE_VERBS } from './vol-change.ts';
import { VOL_CREATE_VERBS } from './vol-create.ts';
import { VOL_SHOW_VERBS } from './vol-show.ts';

/** All verbs of volumes. */
export const VOL_VERBS: Readonly<Record<string, PoolVerb>> = {
  ...VOL_CREATE_VERBS,
  ...VOL_SHOW_VERBS,
  ...VOL_CHANGE_VERBS,
};
