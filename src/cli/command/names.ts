import { POOL_VERBS } from '../pool/pool-verbs.ts';
import { namesFor } from '../pool/names.ts';
import { VOL_VERBS } from '../pool/vol-verbs.ts';
import { out } from '../output.ts';

/** Milliseconds after which nothing is offered: a server may not answer. */
const PATIENCE = 1500;

/**
 * `pool--names INDEX WORD...`: what completion scripts ask for the names of pools and volumes that may stand at a place of a
 * command line. One name a line; exit code 1 where no such name is looked for. Never says why, and is never slow.
 */
export async function run([index = '', ...words]: readonly string[]): Promise<void> {
  const timer = setTimeout(() => process.exit(0), PATIENCE);
  try {
    const names = await namesFor({ ...POOL_VERBS, ...VOL_VERBS }, words, Number(index));
    if (names === null) process.exitCode = 1;
    else out(names.map((name) => `${name}\n`).join(''));
  } catch {
    // There are no names to offer.
  } finally {
    clearTimeout(timer);
  }
}
