import { hex, hex64 } from '../../../core/bytes.ts';
import { COMPRESSED, compressedPlace, COPIED, l2Reserved, offsetOf, ZERO } from '../entry.ts';
import type { CheckContext } from './context.ts';
import type { L2Piece } from './l2-tables.ts';
import type { ProblemCode, RepairKind } from './problem.ts';
import type { Part } from './read-tables.ts';
import type { StoredRefcounts } from './stored.ts';

/**
 * Checks L2 entries and counts what they refer to. Pieces are given in ascending order of their host offset. An entry that
 * several L1 entries lead to is looked at once and counted for each.
 */
export class L2Check {
  readonly #context: CheckContext;
  readonly #stored: StoredRefcounts;
  // Fragmentation: where the last data cluster would go on, and how many active tables began since, which did not see it.
  #next = 0;
  #since = 0;

  constructor(context: CheckContext, stored: StoredRefcounts) {
    this.#context = context;
    this.#stored = stored;
  }

  check(part: Part<L2Piece>): void {
    const { piece, view } = part;
    if (part.at === piece.at) this.#since += piece.fresh;
    if (view === null) {
      this.#context.unreadable('L2 table', part.at, part.error);
      return;
    }
    if (this.#context.metadata.geometry.extendedL2 || this.#context.externalData)
      this.#checkUnusual(part, view);
    else this.#checkStandard(part, view);
  }

  /** The hot path: entries of 8 bytes that point into the image itself. */
  #checkStandard(part: Part<L2Piece>, view: DataView): void {
    const context = this.#context;
    const { references, fileClusters, statistics } = context;
    const stored = this.#stored;
    const { all, active, flagged } = part.piece;
    const { clusterBits, clusterSize } = context.metadata.geometry;
    const highClusters = 2 ** (32 - clusterBits);
    const unaligned = (clusterSize - 1) & ~511;
    const isV2 = context.metadata.header.version === 2;
    const end = part.length;
    let next = this.#next;
    let since = this.#since;
    for (let at = 0; at < end; at += 8) {
      const hi = view.getUint32(at);
      const lo = view.getUint32(at + 4);
      if (hi === 0 && lo === 0) continue;
      if ((hi & COMPRESSED) !== 0) {
        this.#compressed(part, at, hi, lo, 0, 0);
        continue;
      }
      if (l2Reserved(hi, lo)) this.#reserved(part, at, hi, lo);
      const cluster = (hi & 0x00ff_ffff) * highClusters + (lo >>> clusterBits);
      const misplaced = lo & unaligned;
      if (isV2 && (lo & ZERO) !== 0) this.#zeroInV2(part, at, hi, lo);
      // Only here the whole offset is zero: there is no data cluster.
      if (cluster === 0 && misplaced === 0) continue;
      if (misplaced !== 0) {
        this.#unaligned(part, at, hi, lo, (lo & ZERO) === 0);
        context.count(
          'data cluster',
          cluster * clusterSize + misplaced,
          clusterSize,
          all,
          this.#guest(part, at),
        );
      } else if (cluster < fileClusters) references.add(cluster, all);
      else context.beyondEnd('data cluster', cluster * clusterSize, clusterSize, all, this.#guest(part, at));
      if (active === 0) continue;
      const offset = cluster * clusterSize + misplaced;
      statistics.allocated += active;
      if (offset !== next && active > since) statistics.fragmented += active - since;
      next = offset + clusterSize;
      since = 0;
      if (flagged === 0) continue;
      const one = stored.isOne(cluster);
      if (one !== -1 && one !== hi >>> 31) this.#copied(part, at, hi, lo, one);
    }
    this.#next = next;
    this.#since = since;
  }

  /** Extended entries, and images with an external data file. */
  #checkUnusual(part: Part<L2Piece>, view: DataView): void {
    const context = this.#context;
    const { externalData, statistics } = context;
    const { all, active, flagged } = part.piece;
    const { clusterSize, extendedL2, l2EntrySize } = context.metadata.geometry;
    for (let at = 0; at < part.length; at += l2EntrySize) {
      const hi = view.getUint32(at);
      const lo = view.getUint32(at + 4);
      const zeros = extendedL2 ? view.getUint32(at + 8) : 0;
      const allocated = extendedL2 ? view.getUint32(at + 12) : 0;
      if (hi === 0 && lo === 0 && allocated === 0) continue;
      if ((hi & COMPRESSED) !== 0) {
        this.#compressed(part, at, hi, lo, zeros, allocated);
        continue;
      }
      if (l2Reserved(hi, lo)) this.#reserved(part, at, hi, lo);
      const offset = offsetOf(hi, lo);
      const isZero = !extendedL2 && (lo & ZERO) !== 0;
      // With an external data file, the copied flag tells host offset 0 from none.
      if (offset === 0 && (isZero || !externalData || (hi & COPIED) === 0)) {
        if (allocated !== 0)
          this.#subclusters(part, at, 'subclusters are marked as allocated, but the entry has no cluster');
        continue;
      }
      if ((zeros & allocated) !== 0)
        this.#subclusters(part, at, 'subclusters are marked both as allocated and as zero');
      if ((lo & (clusterSize - 1) & ~511) !== 0) {
        this.#unaligned(part, at, hi, lo, extendedL2 ? allocated !== 0 : !isZero);
      }
      if (externalData) this.#placeInDataFile(part, at, offset);
      else context.count('data cluster', offset, clusterSize, all, this.#guest(part, at));
      if (active === 0) continue;
      statistics.allocated += active;
      if (offset !== this.#next && active > this.#since) statistics.fragmented += active - this.#since;
      this.#next = offset + clusterSize;
      this.#since = 0;
      if (flagged === 0) continue;
      const one = externalData ? 1 : this.#stored.isOne(Math.floor(offset / clusterSize));
      if (one !== -1 && one !== hi >>> 31) this.#copied(part, at, hi, lo, one);
    }
  }

  #compressed(
    part: Part<L2Piece>,
    at: number,
    hi: number,
    lo: number,
    zeros: number,
    allocated: number,
  ): void {
    const context = this.#context;
    const { all, active } = part.piece;
    if ((hi & COPIED) !== 0) {
      this.#report(
        part,
        at,
        all,
        'COMPRESSED_COPIED',
        'entry',
        () => 'a compressed cluster has the copied flag',
      );
    }
    if (context.externalData) {
      const message = (): string => 'a compressed cluster in an image with an external data file';
      this.#report(part, at, all, 'COMPRESSED_DATA_FILE', 'none', message);
      return;
    }
    if (zeros !== 0 || allocated !== 0) {
      const message = (): string =>
        `a compressed cluster has the subcluster bitmap ${hex64(zeros, allocated)}`;
      this.#report(part, at, all, 'COMPRESSED_SUBCLUSTERS', 'entry', message);
      return;
    }
    const place = compressedPlace(hi, lo, context.metadata.geometry.clusterBits);
    if (place === null) {
      const message = (): string => `the compressed cluster of entry ${hex64(hi, lo)} lies past 2^53`;
      this.#report(part, at, all, 'BEYOND_END', 'none', message);
    } else context.count('compressed cluster', place.offset, place.length, all, this.#guest(part, at));
    context.statistics.allocated += active;
    context.statistics.compressed += active;
    // Streams share sectors, so reading them is never sequential.
    context.statistics.fragmented += active;
  }

  #reserved(part: Part<L2Piece>, at: number, hi: number, lo: number): void {
    this.#report(
      part,
      at,
      part.piece.all,
      'L2_RESERVED',
      'entry',
      () => `reserved bits are set in ${hex64(hi, lo)}`,
    );
  }

  #zeroInV2(part: Part<L2Piece>, at: number, hi: number, lo: number): void {
    const message = (): string => `${hex64(hi, lo)} is a zero cluster, which version 2 does not have`;
    this.#report(part, at, part.piece.all, 'ZERO_FLAG_V2', 'entry', message);
  }

  #unaligned(part: Part<L2Piece>, at: number, hi: number, lo: number, holdsData: boolean): void {
    const message = (): string =>
      `its ${holdsData ? 'data' : 'preallocated'} cluster at ${hex(offsetOf(hi, lo))} is not cluster aligned`;
    this.#report(part, at, part.piece.all, 'DATA_UNALIGNED', holdsData ? 'none' : 'entry', message);
  }

  #subclusters(part: Part<L2Piece>, at: number, what: string): void {
    this.#report(part, at, part.piece.all, 'SUBCLUSTERS_WRONG', 'none', () => what);
  }

  #copied(part: Part<L2Piece>, at: number, hi: number, lo: number, one: 0 | 1): void {
    const message = (): string =>
      `the copied flag is ${hi >>> 31 === 1 ? 'set' : 'clear'}, but the refcount of the cluster at ${hex(offsetOf(hi, lo))} is ${one === 1 ? '1' : 'not 1'}`;
    this.#report(part, at, part.piece.flagged, 'COPIED_WRONG', 'flag', message);
  }

  #placeInDataFile(part: Part<L2Piece>, at: number, offset: number): void {
    const guest = this.#guest(part, at);
    if (guest === undefined || guest === offset) return;
    const message = (): string =>
      `host offset ${hex(offset)} in the external data file differs from the guest offset`;
    this.#report(part, at, part.piece.active, 'DATA_FILE_OFFSET', 'none', message);
  }

  /** Guest offset of the entry `at` bytes into the part; undefined where only snapshots lead to it. */
  #guest(part: Part<L2Piece>, at: number): number | undefined {
    const { piece } = part;
    if (piece.l1Index < 0) return undefined;
    const { l1Coverage, l2EntrySize, clusterSize } = this.#context.metadata.geometry;
    return piece.l1Index * l1Coverage + ((part.at + at - piece.table) / l2EntrySize) * clusterSize;
  }

  #report(
    part: Part<L2Piece>,
    at: number,
    times: number,
    code: ProblemCode,
    repair: RepairKind,
    message: () => string,
  ): void {
    this.#context.log.corruption(times, () => {
      const guestOffset = this.#guest(part, at);
      const place = guestOffset === undefined ? 'of a snapshot' : `(guest offset ${hex(guestOffset)})`;
      return {
        code,
        structure: 'L2 entry',
        message: `L2 entry at ${hex(part.at + at)} ${place}: ${message()}`,
        hostOffset: part.at + at,
        ...(guestOffset === undefined ? {} : { guestOffset }),
        repair,
      };
    });
  }
}
