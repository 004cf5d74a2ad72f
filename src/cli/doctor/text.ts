import { printable } from '../../core/errors.ts';
import type { Host } from './host.ts';
import type { Mount } from '../../storage/mount.ts';
import type { Trial } from './probe.ts';

/** All that doctor finds out. */
export interface Findings extends Host {
  readonly path: string;
  readonly fileSystem: Mount | null;
  readonly trials: readonly Trial[];
  /** Why nothing could be tried; null when it could. */
  readonly problem: string | null;
}

/** The findings for people. */
export function doctorText(findings: Findings): string {
  const { addon, tools, fileSystem, problem } = findings;
  const rows: (readonly [string, string])[] = [
    ['spindle', findings.spindle],
    ['node', findings.node],
    ['platform', `${findings.platform}, kernel ${findings.kernel}`],
    [
      'addon',
      addon.loaded ? `loaded from ${addon.path ?? ''}` : `not loaded: ${addon.reason ?? 'no reason given'}`,
    ],
    ['fs-ext', findings.fsExt ? 'loads' : 'does not load (pools need it for their locks)'],
    ...Object.entries(tools).map(
      ([name, path]) => [name, path ?? 'not found (used only without the addon)'] as const,
    ),
    ['path', findings.path],
    [
      'file system',
      fileSystem === null
        ? 'unknown'
        : `${fileSystem.type} on ${fileSystem.source}, mounted at ${fileSystem.point}`,
    ],
    ['options', fileSystem === null ? 'unknown' : fileSystem.options.join(',')],
  ];
  const lines = rows.map(([name, value]) => `${name.padEnd(12)}${printable(value)}`);
  lines.push(
    '',
    `What files can do there${problem === null ? ', tried on one' : ` could not be tried: ${printable(problem)}`}:`,
  );
  const width = Math.max(...findings.trials.map(({ means }) => means.length));
  for (const { means, works, note } of findings.trials) {
    const verdict = works === null ? '?' : works ? 'yes' : 'no';
    lines.push(`  ${means.padEnd(width)}  ${verdict}${note === undefined ? '' : ` (${printable(note)})`}`);
  }
  return lines.map((line) => `${line}\n`).join('');
}
