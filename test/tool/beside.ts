/** Called as qemu-img beside the real one: what both say, made comparable. */
import { expect } from 'vitest';
import type { CliResult } from './cli.ts';

/** What a machine holds at the moment, and times. */
export function steady(text: string): string {
  return text
    .replace(/("actual-size": |"date-n?sec": |disk size: ).*/g, '$1')
    .replace(/\d{4}-\d\d-\d\d \d\d:\d\d:\d\d/g, 'then')
    .replace(/\d+\.\d{3} seconds/g, 'seconds')
    .replace(/( +\(\d+\.\d\d\/100%\)\r)+/g, 'progress');
}

/** What was printed: as a value where it is JSON, by line where it is not. */
export function said(stdout: string): unknown {
  const text = steady(stdout);
  if (!/^[[{]/.test(text)) return text;
  return JSON.parse(stdout, (key: string, value: unknown) =>
    ['actual-size', 'date-sec', 'date-nsec'].includes(key) ? null : value,
  );
}

/** Exactly one line that begins with the name of the program, or, with a warning, none of it is a failure. */
export function expectComplaint({ stderr, code }: CliResult): void {
  if (code === 0 || stderr === '') return;
  expect(stderr).toMatch(/^qemu-img: .+\n$/);
}
