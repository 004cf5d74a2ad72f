import { keyOf, type Cell, type Most } from './cell.ts';
import type { Plan } from './plan.ts';
import type { Scenario } from './scenario.ts';

/** A step of which every image gets fewer requests than the preset has, as the slowest has no time for more. */
export interface Reduced {
  readonly scenario: string;
  readonly step: string;
  /** For each image, and how many the preset has. */
  readonly requests: number;
  readonly of: number;
}

/** Part of the limit that the slowest image may take, so that none is cut short when the store is slower once. */
const PART = 0.5;

/**
 * What has to be left out of a scenario so that every image can do the same work, from cells of it that were measured once.
 * Cut short at the limit, a slow policy would write less than a fast one, and neither times nor extents could be compared.
 */
export function reductions(
  { size, scale, limit }: Pick<Plan, 'size' | 'scale' | 'limit'>,
  { id, images, steps }: Scenario,
  cells: readonly Cell[],
): Reduced[] {
  return steps(size, scale, 0).flatMap(({ name, operations }) => {
    const of = operations.length / 3;
    // Seconds that one request of an image takes where it takes longest.
    const slowest = Math.max(
      ...cells.flatMap((cell) =>
        cell.steps
          .filter(({ step, requests }) => step === name && requests > 0)
          .map(({ seconds, requests }) => (seconds * images) / requests),
      ),
      0,
    );
    const requests = slowest === 0 ? of : Math.max(Math.floor((limit * PART) / 1e9 / slowest), 1);
    return requests < of ? [{ scenario: id, step: name, requests, of }] : [];
  });
}

/** For the images that are measured then. */
export function mostOf(reduced: readonly Reduced[]): Most {
  return new Map(reduced.map(({ scenario, step, requests }) => [keyOf(scenario, step), requests]));
}
