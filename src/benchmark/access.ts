import { SpindleError } from '../core/errors.ts';
import { seeded, seedOf } from './random.ts';

/**
 * Where one request lies after the other: `sequential` one behind the other, `reverse` from the end of the range to its
 * start, `strided` a step apart, each pass through the range one request later than the one before, `random` anywhere, in
 * multiples of its own size.
 */
export type Access = 'sequential' | 'reverse' | 'strided' | 'random';

/** Every {@link Access}. */
export const ACCESSES: readonly Access[] = ['sequential', 'reverse', 'strided', 'random'];

/** A size of requests in bytes, and how often it is drawn beside the others. */
export interface SizeShare {
  readonly size: number;
  readonly weight: number;
}

/** What requests are drawn by. All in bytes. */
export interface Drawing {
  readonly access: Access;
  readonly sizes: readonly SizeShare[];
  /** From the start of a request to that of the next; for `strided`. */
  readonly step: number;
  /** The range of the disk that is touched. */
  readonly start: number;
  readonly end: number;
  /** Of 100 requests, how many read. */
  readonly readPercent: number;
  readonly seed: number;
}

/** A request as it is drawn. */
export interface Drawn {
  readonly at: number;
  readonly length: number;
  readonly write: boolean;
}

/**
 * A function that gives one request after the other, without end; the same for the same drawing. What a request reads or
 * writes, how long it is and where it lies come from generators of their own, so that one does not shift the others.
 */
export function drawer({ access, sizes, step, start, end, readPercent, seed }: Drawing): () => Drawn {
  const [ofKind, ofSize, ofPlace] = [
    seeded(seedOf(seed, 'kind')),
    seeded(seedOf(seed, 'size')),
    seeded(seedOf(seed, 'place')),
  ];
  const total = sizes.reduce((sum, { weight }) => sum + weight, 0);
  const largest = Math.max(...sizes.map(({ size }) => size));
  const one = sizes.length === 1;
  let next = access === 'reverse' ? end : start;
  let lane = 0;

  const lengthOf = (): number => {
    let left = one ? 0 : ofSize() * total;
    return sizes.find(({ weight }) => (left -= weight) < 0)?.size ?? largest;
  };
  const placeOf = (length: number): number => {
    if (access === 'random')
      return start + Math.floor(ofPlace() * Math.floor((end - start) / length)) * length;
    if (access === 'reverse') {
      if (next - length < start) next = end;
      return (next -= length);
    }
    if (next + length > end) {
      lane += largest;
      if (access === 'sequential' || lane >= step || start + lane + length > end) lane = 0;
      next = start + lane;
    }
    const at = next;
    next += access === 'sequential' ? length : step;
    return at;
  };
  return () => {
    // Whole percentages at both ends draw nothing by chance.
    const write = readPercent < 100 && (readPercent <= 0 || ofKind() * 100 >= readPercent);
    const length = lengthOf();
    return { at: placeOf(length), length, write };
  };
}

/** @throws SpindleError OUT_OF_RANGE where no request of the largest size fits into what is touched of a disk of `size` bytes */
export function refuseMisfit({ start, end, sizes }: Drawing, size: number): void {
  const largest = Math.max(...sizes.map((share) => share.size));
  if (end > size)
    throw new SpindleError(
      'OUT_OF_RANGE',
      `the range to touch ends at ${String(end)}, past the end of the disk at ${String(size)}`,
    );
  if (start + largest > end)
    throw new SpindleError(
      'OUT_OF_RANGE',
      `a request of ${String(largest)} bytes at offset ${String(start)} passes the end at ${String(end)}; choose a smaller size or offset`,
    );
}
