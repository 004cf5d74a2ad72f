import { divUp } from '../../core/align.ts';
import { SpindleError } from '../../core/errors.ts';
import { geometryOf, l1SizeFor, refcountClustersFor, type Geometry } from './geometry.ts';
import { Limit, TABLE_ENTRY } from './layout.ts';

/** The preallocation modes of qcow2 images. */
export type Qcow2Preallocation = 'off' | 'metadata' | 'falloc' | 'full';

/** What decides the layout of a new image. */
export interface PlanOptions {
  /** Virtual size in bytes. */
  readonly size: number;
  readonly clusterSize: number;
  readonly refcountBits: number;
  readonly extendedL2: boolean;
  readonly preallocation: Qcow2Preallocation;
  readonly externalData: boolean;
  /** Bytes of the encryption header; default 0: none. */
  readonly encryptionHeader?: number;
}

/** Where everything of a new image lies. Places and counts are in clusters. */
export interface Plan {
  readonly geometry: Geometry;
  readonly refcountTable: { readonly at: number; readonly clusters: number };
  /** Host cluster of each refcount block, in the order of the refcount table. */
  readonly refcountBlocks: readonly number[];
  readonly l1: { readonly at: number; readonly entries: number };
  /** The encryption header; `clusters` 0 where there is none. */
  readonly encryption: { readonly at: number; readonly clusters: number };
  readonly l2: { readonly at: number; readonly tables: number };
  /** The mapped clusters; `clusters` 0 where nothing is mapped. In an external data file `at` is 0. */
  readonly data: { readonly at: number; readonly clusters: number };
  /** Clusters of the image file that are in use, all of them from 0 on. */
  readonly used: number;
  /** Length of the image file in bytes. */
  readonly length: number;
}

/**
 * Lays out a new image without gaps: header, refcount table, refcount blocks, L1, encryption header, L2 tables, data. Without
 * preallocation it is qemu's layout to the byte where one refcount table cluster is enough: the first refcount block
 * before the L1 table, the others after it.
 *
 * With preallocation qemu puts each L2 table in front of the data it maps; here they stand together, so that metadata
 * is written in one sequential run and guest data is contiguous on the host.
 * @throws SpindleError LIMIT
 */
export function planImage(options: PlanOptions): Plan {
  const { size, externalData, preallocation } = options;
  const geometry = geometryOf(
    Math.log2(options.clusterSize),
    Math.log2(options.refcountBits),
    options.extendedL2,
  );
  const { clusterSize } = geometry;
  const entries = l1SizeFor(geometry, size);
  if (entries * TABLE_ENTRY > Limit.L1_TABLE) {
    const largest = Math.floor(Limit.L1_TABLE / TABLE_ENTRY) * geometry.l1Coverage;
    throw new SpindleError(
      'LIMIT',
      `a disk of ${String(size)} bytes is too large for clusters of ${String(clusterSize)}: ` +
        `at most ${String(largest)} bytes; choose larger clusters`,
    );
  }
  const mapped = preallocation === 'off' ? 0 : divUp(size, clusterSize);
  const l1Clusters = divUp(entries * TABLE_ENTRY, clusterSize);
  const tables = preallocation === 'off' ? 0 : entries;
  const dataClusters = externalData ? 0 : mapped;
  const encryption = divUp(options.encryptionHeader ?? 0, clusterSize);
  const others = 1 + l1Clusters + encryption + tables + dataClusters;
  const refcounts = refcountClustersFor(geometry, others);
  if (refcounts.table * clusterSize > Limit.REFCOUNT_TABLE) {
    throw new SpindleError(
      'LIMIT',
      `a refcount table for ${String(size)} bytes is too large: choose larger clusters`,
    );
  }
  const used = others + refcounts.blocks + refcounts.table;
  const blocksFirst = refcounts.table > 1 || mapped > 0 ? refcounts.blocks : 1;
  const firstBlock = 1 + refcounts.table;
  const l1At = firstBlock + blocksFirst;
  const encryptionAt = l1At + l1Clusters;
  const laterBlock = encryptionAt + encryption;
  const l2At = laterBlock + refcounts.blocks - blocksFirst;
  const dataAt = l2At + tables;
  // Where the L1 table is last the file ends with its last entry.
  const l1Last = l2At === encryptionAt && tables === 0;
  return {
    geometry,
    refcountTable: { at: 1, clusters: refcounts.table },
    refcountBlocks: Array.from({ length: refcounts.blocks }, (_, index) =>
      index < blocksFirst ? firstBlock + index : laterBlock + index - blocksFirst,
    ),
    l1: { at: l1At, entries },
    encryption: { at: encryptionAt, clusters: encryption },
    l2: { at: l2At, tables },
    data: { at: externalData ? 0 : dataAt, clusters: mapped },
    used,
    length: l1Last ? l1At * clusterSize + entries * TABLE_ENTRY : used * clusterSize,
  };
}
