import { formatError } from '../../../core/errors.ts';
import { Rank } from './ordered-cache.ts';

/** What kinds of metadata there are, for the overlap check and its message. */
export type MetadataKind =
  | 'header'
  | 'L1 table'
  | 'L2 table'
  | 'refcount table'
  | 'refcount block'
  | 'snapshot table'
  | 'L1 table of a snapshot'
  | 'L2 table of a snapshot'
  | 'bitmap directory'
  | 'bitmap table'
  | 'bitmap data'
  | 'encryption header';

const KINDS: readonly MetadataKind[] = [
  'header',
  'L1 table',
  'L2 table',
  'refcount table',
  'refcount block',
  'snapshot table',
  'L1 table of a snapshot',
  'L2 table of a snapshot',
  'bitmap directory',
  'bitmap table',
  'bitmap data',
  'encryption header',
];

/**
 * What no write may hit, whatever the refcounts say; the levels are those of qemu's `overlap-check`. `constant`: what
 * stays in its place while the image is open. `cached` (the default): all that is known without reading more. `all`: the
 * L2 tables of internal snapshots too, for which the L1 tables of all snapshots are read at opening.
 */
export type OverlapCheck = (typeof OVERLAP_CHECKS)[number];

/** All levels, from the least on. */
export const OVERLAP_CHECKS = ['none', 'constant', 'cached', 'all'] as const;

const CONSTANT: readonly MetadataKind[] = [
  ...(['header', 'L1 table', 'refcount table', 'snapshot table'] as const),
  ...(['bitmap directory', 'encryption header'] as const),
];
const CACHED: readonly MetadataKind[] = [
  ...CONSTANT,
  ...(['L2 table', 'refcount block', 'L1 table of a snapshot'] as const),
  ...(['bitmap table', 'bitmap data'] as const),
];
const CHECKED: Readonly<Record<OverlapCheck, readonly MetadataKind[]>> = {
  none: [],
  constant: CONSTANT,
  cached: CACHED,
  all: KINDS,
};

/** What the pages of the metadata cache hold. */
export const KIND_OF_RANK = {
  [Rank.REFCOUNT_BLOCK]: 'refcount block',
  [Rank.REFCOUNT_TABLE]: 'refcount table',
  [Rank.L2]: 'L2 table',
  [Rank.L1]: 'L1 table',
} as const;

const NOTHING: readonly MetadataKind[] = [];
/** What may be written where. Work on snapshots changes the flags of their tables. */
const ALLOWED: Partial<Record<MetadataKind, readonly MetadataKind[]>> = Object.fromEntries(
  KINDS.map((kind) => [kind, kind === 'L2 table' ? [kind, 'L2 table of a snapshot'] : [kind]]),
);

/** Clusters that share one array. */
const PAGE = 4096;

/**
 * Which host clusters hold metadata: looked at before every write, so that damaged tables cannot make spindle write
 * guest data over metadata or one table over another. One byte a cluster, in pages that exist where there is metadata.
 */
export class ClusterKinds {
  readonly #clusterSize: number;
  readonly #pages = new Map<number, Uint8Array>();
  /** By the number that a kind has in the pages: whether it may not be written over. */
  readonly #isChecked: readonly boolean[];

  constructor(clusterSize: number, level: OverlapCheck = 'cached') {
    this.#clusterSize = clusterSize;
    this.#isChecked = [false, ...KINDS.map((kind) => CHECKED[level].includes(kind))];
  }

  /** Notes that a range holds metadata of a kind. @throws SpindleError CORRUPT when it holds other metadata */
  claim(at: number, length: number, kind: MetadataKind): void {
    this.check(at, length, kind);
    this.#set(at, length, KINDS.indexOf(kind) + 1);
  }

  /** The same for a range that is new: it may hold no metadata at all. @throws SpindleError CORRUPT */
  claimNew(at: number, length: number, kind: MetadataKind): void {
    this.#refuse(at, length, kind, NOTHING);
    this.#set(at, length, KINDS.indexOf(kind) + 1);
  }

  /** Notes an L2 table of a snapshot, unless the active disk has it too. @throws SpindleError CORRUPT */
  claimInactive(at: number): void {
    const number = Math.floor(at / this.#clusterSize);
    const found = this.#pages.get(Math.floor(number / PAGE))?.[number % PAGE] ?? 0;
    if (KINDS[found - 1] !== 'L2 table') this.claim(at, this.#clusterSize, 'L2 table of a snapshot');
  }

  /** Notes that a range holds no metadata any more. */
  release(at: number, length: number): void {
    this.#set(at, length, 0);
  }

  /** What the cluster at host offset `at` holds; undefined for guest data, and for what is not known. */
  kindAt(at: number): MetadataKind | undefined {
    const cluster = Math.floor(at / this.#clusterSize);
    const number = Math.floor(cluster / PAGE);
    return KINDS[(this.#pages.get(number)?.[cluster - number * PAGE] ?? 0) - 1];
  }

  /**
   * Refuses a write into a range that holds metadata, unless of the kind that is to be written.
   * @throws SpindleError CORRUPT
   */
  check(at: number, length: number, kind?: MetadataKind): void {
    this.#refuse(at, length, kind ?? 'guest data', kind === undefined ? NOTHING : (ALLOWED[kind] ?? [kind]));
  }

  #refuse(at: number, length: number, what: string, allowed: readonly MetadataKind[]): void {
    this.#each(at, length, (page, index, cluster) => {
      const found = page?.[index] ?? 0;
      const there = KINDS[found - 1];
      if (there === undefined || this.#isChecked[found] !== true || allowed.includes(there)) return;
      throw formatError('CORRUPT', there, `${what} would be written over it; check the image`, {
        offset: cluster * this.#clusterSize,
      });
    });
  }

  #set(at: number, length: number, value: number): void {
    this.#each(at, length, (page, index, cluster) => {
      let bytes = page;
      if (bytes === undefined) {
        if (value === 0) return;
        bytes = new Uint8Array(PAGE);
        this.#pages.set(Math.floor(cluster / PAGE), bytes);
      }
      bytes[index] = value;
    });
  }

  #each(
    at: number,
    length: number,
    work: (page: Uint8Array | undefined, index: number, cluster: number) => void,
  ): void {
    if (length <= 0) return;
    const last = Math.floor((at + length - 1) / this.#clusterSize);
    for (let cluster = Math.floor(at / this.#clusterSize); cluster <= last; cluster++) {
      const number = Math.floor(cluster / PAGE);
      work(this.#pages.get(number), cluster - number * PAGE, cluster);
    }
  }
}
