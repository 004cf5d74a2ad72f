import { appendFile } from 'node:fs/promises';
import { join } from 'node:path';
import { ownDirectory, removeWhole, writeWhole } from './atomic.ts';
import type { PoolUsage } from './definition.ts';
import type { PoolHome } from './home.ts';
import { readIfThere } from './store.ts';

/*
 * How full a pool was, and when: one line of JSON each in NAME.samples. A line is added whole; one that a crash cut short
 * is passed over.
 */

/** How full a pool was. */
export interface Sample extends PoolUsage {
  /** Milliseconds since 1970. */
  readonly time: number;
}

/** Milliseconds between two samples that are kept. */
const INTERVAL = 60_000;
/** Samples that are kept, and at which number the oldest go. */
const KEPT = 2000;
const MOST = 4000;

const pathOf = ({ state }: PoolHome, uuid: string): string => join(state, `${uuid}.samples`);

/** The samples of a pool, oldest first. */
export function readSamples(home: PoolHome, uuid: string): Sample[] {
  return (readIfThere(pathOf(home, uuid)) ?? '').split('\n').flatMap((line) => {
    try {
      const value = JSON.parse(line) as Sample;
      const numbers = [value.time, value.capacity, value.allocation, value.available];
      return numbers.every((number) => Number.isFinite(number)) ? [value] : [];
    } catch {
      return [];
    }
  });
}

/** Keeps a sample, unless there is one of this minute or `force` is given. Called under the lock of the pool. */
export async function recordSample(
  home: PoolHome,
  uuid: string,
  usage: PoolUsage,
  { time = Date.now(), force = false }: { time?: number; force?: boolean } = {},
): Promise<void> {
  const before = readSamples(home, uuid);
  const last = before.at(-1);
  if (!force && last !== undefined && time >= last.time && time - last.time < INTERVAL) return;
  const { capacity, allocation, available } = usage;
  const line = `${JSON.stringify({ time, capacity, allocation, available })}\n`;
  await ownDirectory(home.state);
  if (before.length < MOST) {
    // A line that was cut short must not take this one with it.
    const text = readIfThere(pathOf(home, uuid)) ?? '';
    await appendFile(pathOf(home, uuid), (text === '' || text.endsWith('\n') ? '' : '\n') + line, {
      mode: 0o600,
    });
    return;
  }
  const kept = before.slice(-KEPT).map((sample) => `${JSON.stringify(sample)}\n`);
  await writeWhole(pathOf(home, uuid), kept.join('') + line);
}

/** Forgets how full a pool was. */
export async function forgetSamples(home: PoolHome, uuid: string): Promise<void> {
  await removeWhole(pathOf(home, uuid));
}

/** When a pool is full, as far as its past tells. */
export interface Forecast {
  readonly samples: number;
  /** Milliseconds from the first sample to the last. */
  readonly span: number;
  /** Bytes a day; null where too little is known. */
  readonly growth: number | null;
  readonly usage: PoolUsage;
  /** Milliseconds since 1970; null where it does not fill. */
  readonly full: number | null;
}

/** Milliseconds that samples must span to say anything. */
const LEAST_SPAN = 10 * 60_000;
const DAY = 86_400_000;

/**
 * Draws the line of least squares through the samples, and looks where it meets the capacity: from how full the pool is
 * now, at the rate of that line.
 */
export function forecast(samples: readonly Sample[], usage: PoolUsage, now: number): Forecast {
  const first = samples[0]?.time ?? now;
  const span = (samples.at(-1)?.time ?? now) - first;
  const base = { samples: samples.length, span, usage };
  if (samples.length < 2 || span < LEAST_SPAN) return { ...base, growth: null, full: null };
  const meanTime = samples.reduce((sum, { time }) => sum + (time - first), 0) / samples.length;
  const meanBytes = samples.reduce((sum, { allocation }) => sum + allocation, 0) / samples.length;
  let above = 0;
  let below = 0;
  for (const { time, allocation } of samples) {
    const distance = time - first - meanTime;
    above += distance * (allocation - meanBytes);
    below += distance * distance;
  }
  const rate = below === 0 ? 0 : above / below;
  const full = rate > 0 ? now + usage.available / rate : null;
  return { ...base, growth: rate * DAY, full };
}
