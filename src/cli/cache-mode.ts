import { InvalidArgumentError, Option } from 'commander';

/** The cache modes of qemu, and what they mean for the files that a command opens. */
export interface CacheMode {
  /** Bypass the page cache of the host. */
  readonly direct: boolean;
  /** What was written need not survive a power cut. */
  readonly unsafe: boolean;
  /** Each write is durable before the next step. */
  readonly through: boolean;
}

const MODES: Readonly<Record<string, CacheMode>> = {
  none: { direct: true, unsafe: false, through: false },
  off: { direct: true, unsafe: false, through: false },
  directsync: { direct: true, unsafe: false, through: true },
  writeback: { direct: false, unsafe: false, through: false },
  writethrough: { direct: false, unsafe: false, through: true },
  unsafe: { direct: false, unsafe: true, through: false },
};

/** An option that takes a cache mode. */
export function cacheOption(flags: string, description: string): Option {
  return new Option(flags, `${description}: ${Object.keys(MODES).join(', ')}`).argParser((text) => {
    const mode = Object.hasOwn(MODES, text) ? MODES[text] : undefined;
    if (mode !== undefined) return mode;
    throw new InvalidArgumentError(`the cache modes are ${Object.keys(MODES).join(', ')}`);
  });
}
