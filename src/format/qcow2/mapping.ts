import { isAligned } from '../../core/align.ts';
import { formatError, type SpindleError } from '../../core/errors.ts';
import { COMPRESSED, compressedPlace, COPIED, offsetOf, offsetTooLarge, ZERO } from './entry.ts';
import type { Geometry } from './geometry.ts';
import { SUBCLUSTERS } from './layout.ts';

/** What decides how L2 entries are read, besides the geometry. */
export interface MappingRules {
  readonly geometry: Geometry;
  readonly version: 2 | 3;
  readonly externalData: boolean;
}

/** The kinds of a cluster or subcluster. `host` -1: no space on the host. */
export interface ClusterRun {
  readonly kind: 'data' | 'zero' | 'unallocated' | 'compressed';
  /** Guest bytes from the asked offset on. */
  readonly length: number;
  /** Host offset of the first asked byte; for compressed clusters -1. */
  readonly host: number;
}

/** What is asked of an L2 table. */
export interface Asked {
  /** Entries of the table, from number `first` on. */
  readonly view: DataView;
  readonly first: number;
  /** The number of the entry in its table. */
  readonly index: number;
  /** The guest cluster that the entry is for. */
  readonly cluster: number;
  /** Bytes between the start of the cluster and the first byte asked for. */
  readonly within: number;
  /** Bytes asked for. */
  readonly length: number;
}

/**
 * The first run of one kind in an L2 table: it ends with `length` or with the entries at hand.
 * @throws SpindleError BAD_ENTRY, LIMIT
 */
export function mapRun(rules: MappingRules, asked: Asked): ClusterRun {
  return rules.geometry.extendedL2 ? mapExtended(rules, asked) : mapStandard(rules, asked);
}

function mapStandard(rules: MappingRules, asked: Asked): ClusterRun {
  const { clusterSize } = rules.geometry;
  const { view, first, index, within, length } = asked;
  let { cluster } = asked;
  const last = view.byteLength;
  let at = (index - first) * 8;
  const hi = view.getUint32(at);
  const lo = view.getUint32(at + 4);
  const kind = standardKind(rules, hi, lo, cluster);
  const host = kind === 'compressed' ? -1 : hostOf(rules, kind, hi, lo, cluster);
  let run = clusterSize - within;
  let expected = host + clusterSize;
  for (at += 8, cluster++; run < length && at < last; at += 8, cluster++) {
    const nextHi = view.getUint32(at);
    const nextLo = view.getUint32(at + 4);
    if (standardKind(rules, nextHi, nextLo, cluster) !== kind) break;
    if (kind !== 'compressed' && hostOf(rules, kind, nextHi, nextLo, cluster) !== (host < 0 ? -1 : expected))
      break;
    run += clusterSize;
    expected += clusterSize;
  }
  return { kind, length: Math.min(run, length), host: host < 0 ? -1 : host + within };
}

/** Kind of a standard L2 entry; of an extended one when the caller has dealt with its bitmap. */
function standardKind(rules: MappingRules, hi: number, lo: number, cluster: number): ClusterRun['kind'] {
  if ((hi & COMPRESSED) !== 0) {
    if (rules.externalData)
      throw badEntry(rules, cluster, 'a compressed cluster in an image with an external data file');
    return 'compressed';
  }
  if ((lo & ZERO) !== 0 && !rules.geometry.extendedL2) {
    if (rules.version === 2) throw badEntry(rules, cluster, 'a zero cluster, which version 2 does not have');
    return 'zero';
  }
  return pointsNowhere(rules, hi, lo) ? 'unallocated' : 'data';
}

/** With an external data file host offset 0 is a place like any other, told from "none" by the copied flag. */
function pointsNowhere(rules: MappingRules, hi: number, lo: number): boolean {
  return offsetOf(hi, lo) === 0 && !(rules.externalData && (hi & COPIED) !== 0);
}

/** Host offset of the cluster that an entry points to, -1 when it points nowhere. Checks that it makes sense. */
function hostOf(
  rules: MappingRules,
  kind: ClusterRun['kind'],
  hi: number,
  lo: number,
  cluster: number,
): number {
  if (kind === 'unallocated' || pointsNowhere(rules, hi, lo)) return -1;
  if (offsetTooLarge(hi)) throw badEntry(rules, cluster, 'a host offset of 2^53 or more', 'LIMIT');
  const host = offsetOf(hi, lo);
  const { clusterSize } = rules.geometry;
  if (!isAligned(host, clusterSize))
    throw badEntry(rules, cluster, `host offset ${String(host)} is not cluster aligned`);
  if (rules.externalData && host !== cluster * clusterSize) {
    throw badEntry(rules, cluster, 'host and guest offset differ in an image with an external data file');
  }
  return host;
}

function mapExtended(rules: MappingRules, asked: Asked): ClusterRun {
  const { subclusterSize } = rules.geometry;
  const { view, first, index, within, length } = asked;
  let { cluster } = asked;
  const start = subclusterRun(
    rules,
    view,
    (index - first) * 16,
    cluster,
    Math.floor(within / subclusterSize),
  );
  const host = start.host < 0 ? -1 : start.host + within;
  let run = start.end * subclusterSize - within;
  let open = start.end === SUBCLUSTERS;
  for (let at = (index - first + 1) * 16; open && run < length && at < view.byteLength; at += 16) {
    cluster++;
    const next = subclusterRun(rules, view, at, cluster, 0);
    if (next.kind !== start.kind || next.host !== (host < 0 ? -1 : host + run)) break;
    run += next.end * subclusterSize;
    open = next.end === SUBCLUSTERS;
  }
  return { kind: start.kind, length: Math.min(run, length), host };
}

/** Subclusters of one kind, from number `from` up to `end`; `host` is that of the cluster's first byte, or -1. */
interface SubclusterRun {
  readonly kind: ClusterRun['kind'];
  readonly end: number;
  readonly host: number;
}

function subclusterRun(
  rules: MappingRules,
  view: DataView,
  at: number,
  cluster: number,
  from: number,
): SubclusterRun {
  const hi = view.getUint32(at);
  const lo = view.getUint32(at + 4);
  const base = standardKind(rules, hi, lo, cluster);
  if (base === 'compressed') return { kind: 'compressed', end: SUBCLUSTERS, host: -1 };
  // Bytes 8-11: bit n set, subcluster n reads as zero. Bytes 12-15: bit n set, subcluster n is data.
  const zeros = view.getUint32(at + 8);
  const data = view.getUint32(at + 12);
  if ((zeros & data) !== 0 || (base === 'unallocated' && data !== 0)) {
    throw badEntry(rules, cluster, 'a subcluster bitmap that contradicts itself');
  }
  const kind = subclusterKind(zeros, data, from);
  let end = from + 1;
  while (end < SUBCLUSTERS && subclusterKind(zeros, data, end) === kind) end++;
  return { kind, end, host: base === 'unallocated' ? -1 : hostOf(rules, base, hi, lo, cluster) };
}

function subclusterKind(zeros: number, data: number, index: number): ClusterRun['kind'] {
  if (((data >>> index) & 1) !== 0) return 'data';
  return ((zeros >>> index) & 1) !== 0 ? 'zero' : 'unallocated';
}

/** Where the compressed cluster at an entry lies. @throws SpindleError BAD_ENTRY */
export function compressedAt(
  rules: MappingRules,
  asked: Pick<Asked, 'view' | 'first' | 'index' | 'cluster'>,
): { offset: number; length: number } {
  const { view, first, index, cluster } = asked;
  const at = (index - first) * rules.geometry.l2EntrySize;
  const place = compressedPlace(view.getUint32(at), view.getUint32(at + 4), rules.geometry.clusterBits);
  if (place === null) throw badEntry(rules, cluster, 'a compressed cluster at 2^53 or more', 'LIMIT');
  return place;
}

function badEntry(
  rules: MappingRules,
  cluster: number,
  message: string,
  code: 'BAD_ENTRY' | 'LIMIT' = 'BAD_ENTRY',
): SpindleError {
  const guest = cluster * rules.geometry.clusterSize;
  return formatError(code, 'L2 entry', `guest offset ${String(guest)}: ${message}`, { field: 'entry' });
}
