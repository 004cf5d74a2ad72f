import { formatSize } from '../../core/size.ts';
import type { Drill, DrillRow, Outcome } from './drill.ts';
import type { Failure } from './volume.ts';

/** Headings of {@link cellsOf}. */
export const DRILL_HEAD: readonly string[] = [
  ...[
    'policy',
    'create',
    'first write',
    'rewrite',
    'new tables',
    'neighbour',
    'data kept',
    'check',
    'with room again',
  ],
];

/** A row of the table. */
export function cellsOf({ subject, ...row }: DrillRow): string[] {
  const { create, first, rewrite, growth, neighbour, kept, neighbourKept, check, after } = row;
  const lost = kept.lost + neighbourKept.lost;
  return [
    subject,
    create.failure === null ? `all ${String(create.tried)}` : `${numbers(create)}, ${named(create.failure)}`,
    first.failure === null ? 'all' : `${named(first.failure)} after ${formatSize(first.done)}`,
    ...[rewrite, growth, neighbour].map((outcome) =>
      outcome.failure === null
        ? outcome.tried === 0
          ? '-'
          : 'all'
        : `${numbers(outcome)}, ${named(outcome.failure)}`,
    ),
    lost === 0 ? `all ${String(kept.units + neighbourKept.units)}` : `${String(lost)} LOST`,
    check === null ? '-' : checked(check),
    after.tried === 0
      ? '-'
      : after.failure === null && after.done === after.tried
        ? 'goes on'
        : numbers(after),
  ];
}

/** In plain words: what each policy did. */
export function linesOf(drill: Drill): string[] {
  return drill.rows.map((row) => `${row.subject}: ${sentences(row).join(' ')}`);
}

function sentences(row: DrillRow): string[] {
  const {
    free,
    promised,
    create,
    left,
    first,
    rewrite,
    growth,
    neighbour,
    kept,
    neighbourKept,
    check,
    after,
  } = row;
  const lost = kept.lost + neighbourKept.lost;
  const asked = `${String(create.tried)} volumes of ${formatSize(promised / create.tried)} on ${formatSize(free)}`;
  const said = [
    create.failure === null
      ? `all ${asked} were made, ${formatSize(promised - free)} more than there is.`
      : `refuses at creation: of ${asked} ${String(create.done)} were made, then ${quoted(create.failure)}.`,
  ];
  if (left.length > 0) said.push(`Failed creation LEFT ${left.join(', ')}.`);
  if (first.tried > 0)
    said.push(
      first.failure === null
        ? 'Those that were made never ran out: every first write was taken.'
        : `First writes ran out after ${formatSize(first.done)} of ${formatSize(first.tried)}: the guest gets ${quoted(first.failure)}.`,
    );
  said.push(
    `With the store full to its last byte, ${[
      whether('rewrites', rewrite),
      whether(
        row.format === 'qcow2' ? 'blocks that need new tables' : 'blocks in parts never written',
        growth,
      ),
      whether('rewrites of the thick-eager neighbour', neighbour),
    ]
      .filter((text) => text !== '')
      .join(', ')}.`,
    lost === 0
      ? `All ${String(kept.units + neighbourKept.units)} blocks that had been accepted read back unharmed.`
      : `${String(lost)} of ${String(kept.units + neighbourKept.units)} blocks that had been accepted are LOST.`,
  );
  if (check !== null && create.done > 0) said.push(`The check of the images: ${checked(check)}.`);
  if (after.tried > 0)
    said.push(
      after.done === after.tried
        ? 'With room again the volumes that had failed went on.'
        : `With room again ${String(after.tried - after.done)} of ${String(after.tried)} volumes still failed.`,
    );
  return said;
}

function whether(what: string, { tried, done, failure }: Outcome): string {
  if (tried === 0) return '';
  if (failure === null) return `${what} went on`;
  const how = done === 0 ? 'failed' : `failed ${String(tried - done)} of ${String(tried)} times`;
  return `${what} ${how} with ${named(failure)} at the ${failure.request}`;
}

function numbers({ done, tried }: Outcome): string {
  return `${String(done)} of ${String(tried)}`;
}

function named({ code, errno }: Failure): string {
  return errno === null ? code : `${code} (${errno})`;
}

function quoted(failure: Failure): string {
  return `${named(failure)} from the ${failure.request} (“${failure.message}”)`;
}

function checked({ corruptions, leaks, errors }: NonNullable<DrillRow['check']>): string {
  const found = [
    ...(corruptions > 0 ? [`${String(corruptions)} CORRUPT`] : []),
    ...(errors > 0 ? [`${String(errors)} not checked`] : []),
    ...(leaks > 0 ? [`${String(leaks)} leaked`] : []),
  ];
  return found.length === 0 ? 'clean' : found.join(', ');
}
