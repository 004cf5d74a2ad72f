import { printable } from '../../core/errors.ts';

/** A table as virsh prints one: a blank in front, three after the widest cell of each column, a line below the head. */
export function table(head: readonly string[], rows: readonly (readonly string[])[], quiet = false): string {
  const cells = [head, ...rows].map((row) => row.map(printable));
  const widths = head.map((_, column) =>
    cells.reduce((most, row) => Math.max(most, (row[column] ?? '').length), 0),
  );
  const lines = cells.map((row) =>
    ` ${row.map((cell, column) => cell.padEnd(widths[column] ?? 0)).join('   ')}`.trimEnd(),
  );
  const rule = '-'.repeat(widths.reduce((sum, width) => sum + width + 3, 0));
  const [first = '', ...others] = lines;
  return `${(quiet ? others : [first, rule, ...others]).join('\n')}\n`;
}

/** Lines of a label and a value, as virsh prints them. */
export function labelled(lines: readonly (readonly [label: string, value: string] | undefined)[]): string {
  return lines
    .flatMap((line) => (line === undefined ? [] : `${`${line[0]}:`.padEnd(15)} ${printable(line[1])}\n`))
    .join('');
}
