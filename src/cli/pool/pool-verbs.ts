import { DEFINE_VERBS } from './define.ts';
import { LIFECYCLE_VERBS } from './lifecycle.ts';
import { SHOW_VERBS } from './show.ts';
import type { PoolVerb } from './spec.ts';

/** All verbs of pools. */
export const POOL_VERBS: Readonly<Record<string, PoolVerb>> = {
  ...DEFINE_VERBS,
  ...LIFECYCLE_VERBS,
  ...SHOW_VERBS,
};
