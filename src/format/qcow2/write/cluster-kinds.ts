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
  | 'bitmap directory'
  | 'encryption header';

const KINDS: readonly MetadataKind[] = [
  'header',
  'L1 table',
  'L2 table',
  'refcount table',
  'refcount block',
  'snapshot table',
  'L1 table of a snapshot',
  'bitmap directory',
  'encryption header',
];

/** What the pages of the metadata cache hold. */
export const KIND_OF_RANK = {
  [Rank.REFCOUNT_BLOCK]: 'refcount block',
  [Rank.REFCOUNT_TABLE]: 'refcount table',
  [Rank.L2]: 'L2 table',
  [Rank.L1]: 'L1 table',
} as const;

/** Clusters that share one array. */
const PAGE = 4096;

/**
 * Which host clusters hold metadata: looked at before every write, so that damaged tables cannot make spindle write
 * guest data over metadata or one table over another. One byte a cluster, in pages that exist where there is metadata.
 */
export class ClusterKinds {
  readonly #clusterSize: number;
  readonly #pages = new Map<number, Uint8Array>();

  constructor(clusterSize: number) {
    this.#clusterSize = clusterSize;
  }

  /** Notes that a range holds metadata of a kind. @throws SpindleError CORRUPT when it holds other metadata */
  claim(at: number, length: number, kind: MetadataKind): void {
    this.check(at, length, kind);
    this.#set(at, length, KINDS.indexOf(kind) + 1);
  }

  /** Notes that a range holds no metadata any more. */
  release(at: number, length: number): void {
    this.#set(at, length, 0);
  }

  /**
   * Refuses a write into a range that holds metadata, unless of the kind that is to be written.
   * @throws SpindleError CORRUPT
   */
  check(at: number, length: number, kind?: MetadataKind): void {
    const allowed = kind === undefined ? 0 : KINDS.indexOf(kind) + 1;
    this.#each(at, length, (page, index, cluster) => {
      const found = page?.[index] ?? 0;
      if (found === 0 || found === allowed) return;
      const what = KINDS[found - 1] ?? 'metadata';
      throw formatError(
        'CORRUPT',
        what,
        `${kind ?? 'guest data'} would be written over it; check the image`,
        {
          offset: cluster * this.#clusterSize,
        },
      );
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
