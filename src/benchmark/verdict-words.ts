import type { Environment } from './environment.ts';
import type { Scenario } from './scenario.ts';
import type { Interval } from './statistics.ts';
import type { Subject } from './subject.ts';
import type { Comparison, Conclusion } from './verdict.ts';

/** What the sentences of a verdict are made of. */
export type Found = Pick<Conclusion, 'comparisons' | 'firstWrites' | 'crossovers'>;

/** A confidence as `98.4 %`, never more than it is. */
export function percent(confidence: number): string {
  return `${String(Math.floor(confidence * 1000 + 1e-9) / 10)} %`;
}

/** Where a comparison is: `first (random-sync), seconds`. */
export function placeOf({
  scenario,
  step,
  measure,
}: Pick<Comparison, 'scenario' | 'step' | 'measure'>): string {
  return step === null ? `${measure} (${scenario})` : `${step} (${scenario}), ${measure}`;
}

/** `1.9 times (1.7 to 2.2)`. */
export function times(ratio: Interval | null): string {
  if (ratio === null) return 'not to be told';
  const number = (value: number): string => (value >= 100 ? value.toFixed(0) : value.toPrecision(3));
  return `${number(ratio.value)} times (${number(ratio.low)} to ${number(ratio.high)})`;
}

/** The sentences of a verdict. */
export function words(format: Subject['format'], scenarios: readonly Scenario[], found: Found): string[] {
  const own = found.comparisons.filter((comparison) => comparison.format === format);
  const titles = new Map(scenarios.map(({ id, title }) => [id, title]));
  const lines: string[] = [];
  const created = (
    own.some(({ scenario }) => scenario === 'create')
      ? own.filter(({ scenario }) => scenario === 'create')
      : own
  ).filter(({ measure }) => measure === 'created');
  for (const one of created.slice(0, new Set(created.map(({ of }) => of)).size))
    lines.push(`Creating ${one.of}: ${sentence(one)}`);
  for (const one of own.filter(({ measure, finding }) => measure === 'settled' && finding !== 'none'))
    lines.push(`Creating ${one.of}, until the device is quiet: ${sentence(one)}`);
  for (const one of own.filter(({ step, measure }) => step === 'first' && measure === 'seconds'))
    lines.push(`First write of ${one.of}, ${titles.get(one.scenario) ?? one.scenario}: ${sentence(one)}`);
  for (const one of found.firstWrites.filter(
    (first) => first.format === format && first.measure === 'seconds',
  ))
    lines.push(
      `First write beside rewrite, ${one.of}, ${titles.get(one.scenario) ?? one.scenario}: ${sentence(one)}`,
    );
  for (const { policy, scenario, writes, most } of found.crossovers) {
    if (writes === null) continue;
    const where = titles.get(scenario) ?? scenario;
    const number = `${String(writes)} first write${writes === 1 ? '' : 's'}`;
    lines.push(
      writes <= most
        ? `${policy} has paid for its creation after ${number} (${where}).`
        : `${policy} never pays for its creation: that takes ${number}, and the disk has ${String(most)} (${where}).`,
    );
  }
  const firsts = own.filter(({ step, measure }) => step === 'first' && measure === 'seconds');
  if (firsts.length > 0 && firsts.every(({ finding }) => finding === 'same'))
    lines.unshift('No difference: on this store first writes take the same whatever the policy.');
  else if (firsts.length > 0 && firsts.every(({ finding }) => finding === 'undecided' || finding === 'same'))
    lines.unshift(
      'Undecided: no difference in first writes stands out from chance; more rounds (--thorough) may tell.',
    );
  return lines;
}

function sentence({ finding, ratio, by, why }: Comparison): string {
  if (finding === 'none') return `nothing can be said: ${why ?? 'not measured'}.`;
  if (finding === 'same') return `no difference from ${by}: ${times(ratio)}.`;
  if (finding === 'undecided')
    return `undecided: ${times(ratio)} the time of ${by}${why === undefined ? '' : ` (${why})`}.`;
  return `${finding} than ${by}: ${times(ratio)} its time.`;
}

/** How requests are sent, and what is in the figures for that. */
export function wayOf({ addon, pool }: Pick<Environment, 'addon' | 'pool'>): string {
  const raw = addon
    ? "Raw files take requests on their descriptor; those of qcow2 images go through spindle's driver, so that their figures include the event loop of Node"
    : "There is no addon: all figures include the event loop of Node, those of raw files too; requests to qcow2 images go through spindle's driver";
  return `${raw}, and up to ${String(pool)} threads carry them to the host. Policies are compared within a format, never raw with qcow2.`;
}
