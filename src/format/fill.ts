import type { DataMapping, FormatDriver, FreshPlace } from './driver.ts';

/** A place for guest data from offset `guest` on. */
export interface FilledPlace extends DataMapping {
  readonly guest: number;
}

/** @throws TypeError when only a part of what is new would be filled */
export function checkWhole({ fresh, guest, length }: FilledPlace): void {
  if (fresh !== undefined && (fresh.start !== guest || fresh.end !== guest + length))
    throw new TypeError(`${String(length)} bytes at ${String(guest)} are not whole units of the format`);
}

/**
 * Runs many requests in one turn where the driver has such; in it places are made and committed by what `work` is given.
 */
export function together(
  driver: FormatDriver,
  work: (
    ensureData: FormatDriver['ensureData'],
    commit: (fresh: FreshPlace) => Promise<void>,
  ) => Promise<void>,
): Promise<void> {
  return driver.together === undefined
    ? work(
        (at, length) => driver.ensureData(at, length),
        (fresh) => fresh.commit(),
      )
    : driver.together((ensureData) => work(ensureData, (fresh) => fresh.link?.() ?? fresh.commit()));
}
