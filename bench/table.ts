/** One bar: what was measured, and what it may be. */
export interface Bar {
  readonly what: string;
  /** The unit of `measured` and `limit`, such as `ms` or `x node -e 0`. */
  readonly unit: string;
  readonly measured: number;
  readonly limit: number;
  readonly how: string;
}

/** Prints bars as a table, with a verdict each. */
export function printBars(bars: readonly Bar[]): void {
  const rows = bars.map((bar) => [
    bar.what,
    `${bar.measured.toFixed(3)} ${bar.unit}`,
    `<= ${String(bar.limit)} ${bar.unit}`,
    bar.measured <= bar.limit ? 'met' : 'NOT MET',
    bar.how,
  ]);
  printColumns(['what', 'median', 'bar', 'verdict', 'how'], rows);
}

/** Prints rows under a head, each column as wide as its widest cell. */
export function printColumns(head: readonly string[], rows: readonly (readonly string[])[]): void {
  const widths = head.map((name, column) =>
    Math.max(name.length, ...rows.map((row) => row[column]?.length ?? 0)),
  );
  for (const row of [head, widths.map((width) => '-'.repeat(width)), ...rows]) {
    console.log(
      row
        .map((cell, column) => cell.padEnd(widths[column] ?? 0))
        .join('  ')
        .trimEnd(),
    );
  }
  console.log();
}

/** The middle of the values. */
export function median(values: readonly number[]): number {
  const sorted = [...values].sort((a, b) => a - b);
  const middle = Math.floor(sorted.length / 2);
  const upper = sorted[middle] ?? NaN;
  return sorted.length % 2 === 1 ? upper : ((sorted[middle - 1] ?? NaN) + upper) / 2;
}
