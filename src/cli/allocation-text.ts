import { formatSize } from '../core/size.ts';
import type { HostUsage } from '../op/host-usage.ts';

const POLICY: Readonly<Record<string, string>> = {
  thin: 'thin (space is taken as it is written)',
  'thick-lazy': 'thick-lazy (all space is reserved, some of it not yet written)',
  'thick-eager': 'thick-eager (all space is written)',
  mixed: 'mixed (some space is reserved, some is missing)',
};

const PARTS = [
  ['written', 'written'],
  ['unwritten', 'reserved, unwritten'],
  ['delayed', 'written, no blocks yet'],
  ['hole', 'hole in the file'],
  ['unmapped', 'not mapped'],
  ['compressed', 'compressed'],
  ['shared', 'shared with other files'],
] as const satisfies readonly (readonly [keyof HostUsage, string])[];

/** How the disk of an image lies on the host: the policy that it looks like, and how much there is of each kind. */
export function allocationLines(usage: HostUsage): string[] {
  if (usage.policy === null) return [];
  const parts = PARTS.filter(([key]) => usage[key] > 0).map(([key, name]) => {
    const percent = ((100 * usage[key]) / usage.size).toFixed(1);
    return `    ${name}: ${formatSize(usage[key])} (${String(usage[key])} bytes, ${percent}%)`;
  });
  return [`Allocation: ${POLICY[usage.policy] ?? usage.policy}`, ...parts];
}
