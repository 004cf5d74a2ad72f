/** A seeded source of random numbers (mulberry32): the same seed gives the same numbers everywhere. */
export class Random {
  readonly seed: number;
  #state: number;

  constructor(seed: number) {
    this.seed = seed >>> 0;
    this.#state = this.seed;
  }

  /** A whole number from 0 to 2^32 - 1. */
  u32(): number {
    this.#state = (this.#state + 0x6d2b79f5) >>> 0;
    let mixed = this.#state;
    mixed = Math.imul(mixed ^ (mixed >>> 15), mixed | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return (mixed ^ (mixed >>> 14)) >>> 0;
  }

  /** A whole number from 0 to `limit` - 1. */
  below(limit: number): number {
    return Math.floor((this.u32() / 2 ** 32) * limit);
  }

  /** A whole number from `low` to `high`, both included. */
  between(low: number, high: number): number {
    return low + this.below(high - low + 1);
  }

  /** True with a chance of `part` in 1. */
  chance(part: number): boolean {
    return this.u32() < part * 2 ** 32;
  }

  /** One of `choices`. */
  pick<T>(choices: readonly T[]): T {
    return choices[this.below(choices.length)] as T;
  }

  /** Random bytes. */
  bytes(length: number): Uint8Array {
    const words = new Uint32Array(Math.ceil(length / 4));
    for (let i = 0; i < words.length; i++) words[i] = this.u32();
    return new Uint8Array(words.buffer, 0, length);
  }
}

/** The seed for a test: SPINDLE_SEED where it is set, else one that depends on the name of the test only. */
export function seedOf(name: string): number {
  const wanted = process.env['SPINDLE_SEED'];
  if (wanted !== undefined && wanted !== '') return Number(wanted) >>> 0;
  let hash = 0x811c9dc5;
  for (const char of name) hash = Math.imul(hash ^ (char.codePointAt(0) ?? 0), 0x01000193);
  return hash >>> 0;
}

/** Runs `work` with random numbers for a test of that name; a failure tells the seed that brings it back. */
export async function withRandom(
  name: string,
  work: (random: Random) => void | Promise<void>,
): Promise<void> {
  const random = new Random(seedOf(name));
  try {
    await work(random);
  } catch (error) {
    const hint = `[SPINDLE_SEED=${String(random.seed)} brings this back]`;
    if (error instanceof Error) error.message += ` ${hint}`;
    console.error(`${name}: failed ${hint}`);
    throw error;
  }
}
