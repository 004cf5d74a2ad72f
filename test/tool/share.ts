import { Random, seedOf } from './random.ts';

/**
 * One in how many cases of a grid, and of random sequences, is done: a share under `npm test`, all under
 * `npm run test:whole`. Which ones is chosen by the seed, so the same ones each time.
 */
export const SHARE = Math.max(1, Number(process.env['SPINDLE_SHARE'] ?? 4));

/** The share of these cases that is done, in their order; never none. */
export function shareOf<T>(name: string, all: readonly T[]): T[] {
  if (SHARE === 1) return [...all];
  const random = new Random(seedOf(`share of ${name}`));
  const marked = all.map((value, index) => ({ value, index, mark: random.u32() }));
  const kept = marked.sort((a, b) => a.mark - b.mark).slice(0, Math.ceil(all.length / SHARE));
  return kept.sort((a, b) => a.index - b.index).map(({ value }) => value);
}

/** How often something is done: as an environment variable says, or a share of so many times. */
export function times(variable: string, whole: number): number {
  return Number(process.env[variable] ?? Math.ceil(whole / SHARE));
}
