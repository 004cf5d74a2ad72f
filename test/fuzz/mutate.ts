import type { Random } from '../tool/random.ts';

/** Fields of the header and their widths in bytes. */
const HEADER_FIELDS: readonly (readonly [offset: number, width: 1 | 4 | 8])[] = [
  [0, 4],
  [4, 4],
  [8, 8],
  [16, 4],
  [20, 4],
  [24, 8],
  [32, 4],
  [36, 4],
  [40, 8],
  [48, 8],
  [56, 4],
  [60, 4],
  [64, 8],
  [72, 8],
  [80, 8],
  [88, 8],
  [96, 4],
  [100, 4],
  [104, 1],
];

/** A change of an image, told in words so that a failure can be brought back. */
export interface Mutation {
  readonly bytes: Uint8Array;
  readonly what: string;
}

/** Numbers at which parsers break. */
function interesting(random: Random, size: number): bigint {
  const clusters = [512n, 4096n, 65536n, 2097152n];
  switch (random.below(9)) {
    case 0:
      return 0n;
    case 1:
      return BigInt(random.below(64));
    case 2:
      return 1n << BigInt(random.below(64));
    case 3:
      return (1n << BigInt(random.below(64))) - 1n;
    case 4:
      return 0xffff_ffff_ffff_ffffn;
    case 5:
      return BigInt(size) + BigInt(random.below(3)) - 1n;
    case 6:
      return BigInt(random.below(64)) * random.pick(clusters);
    case 7:
      return 0x8000_0000_0000_0000n | (BigInt(random.below(64)) * random.pick(clusters));
    default:
      return (BigInt(random.u32()) << 32n) | BigInt(random.u32());
  }
}

function put(view: DataView, at: number, width: number, value: bigint): void {
  if (width === 8) view.setBigUint64(at, BigInt.asUintN(64, value));
  else if (width === 4) view.setUint32(at, Number(BigInt.asUintN(32, value)));
  else view.setUint8(at, Number(BigInt.asUintN(8, value)));
}

/** Offset of some structure of the image: the header says where its tables are. */
function tablePlace(view: DataView, random: Random): number {
  const fields = [40, 48, 64];
  const size = view.byteLength;
  let at = Number(view.getBigUint64(random.pick(fields)));
  // From the L1 or refcount table one step further: into an L2 table or refcount block.
  if (random.chance(0.5) && at + 8 <= size) {
    at = Number(view.getBigUint64(at) & 0x00ff_ffff_ffff_fe00n);
  }
  // Nothing there: some cluster, rather than the header again.
  return at > 0 && at < size ? at : random.between(1, Math.max(1, Math.floor(size / 512) - 1)) * 512;
}

/** One to four random changes of a copy of `original`. */
export function mutate(original: Uint8Array, random: Random): Mutation {
  let bytes = original.slice();
  const words: string[] = [];
  const count = random.between(1, 4);
  for (let i = 0; i < count; i++) {
    if (bytes.length < 128) break;
    const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    switch (random.below(12)) {
      case 0: {
        const [at, width] = random.pick(HEADER_FIELDS);
        const value = interesting(random, bytes.length);
        put(view, at, width, value);
        words.push(`header+${String(at)}=${value.toString(16)}`);
        break;
      }
      case 1:
      case 2:
      case 3:
      case 4:
      case 5:
      case 6: {
        const start = tablePlace(view, random);
        const at = Math.min(bytes.length - 8, start + random.below(16) * 8);
        const value = interesting(random, bytes.length);
        put(view, at, 8, value);
        words.push(`table+${String(at)}=${value.toString(16)}`);
        break;
      }
      case 7:
      case 8: {
        const at = random.below(Math.min(bytes.length, random.pick([4096, bytes.length, bytes.length])));
        bytes[at] = random.below(256);
        words.push(`byte ${String(at)}`);
        break;
      }
      case 9: {
        const at = 104 + random.below(Math.min(bytes.length, 1024) - 112);
        put(view, at, 4, interesting(random, bytes.length));
        words.push(`extension area ${String(at)}`);
        break;
      }
      case 10: {
        const from = random.below(bytes.length);
        const length = Math.min(random.pick([8, 64, 512, 4096]), bytes.length - from);
        const to = Math.min(112 + random.below(bytes.length), bytes.length - length);
        bytes.copyWithin(to, from, from + length);
        words.push(`copy ${String(from)}+${String(length)} to ${String(to)}`);
        break;
      }
      default: {
        const length = random.chance(0.5) ? random.below(bytes.length) : bytes.length - random.below(512);
        bytes = bytes.slice(0, length);
        words.push(`cut at ${String(length)}`);
      }
    }
  }
  return { bytes, what: words.join('; ') };
}
