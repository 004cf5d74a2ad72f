import { COMPRESSED, COPIED, l1Reserved, l2Reserved, offsetOf, ZERO } from '../entry.ts';
import type { RepairMode } from './step.ts';

/** What decides how an entry is mended. */
export interface MendRules {
  readonly mode: RepairMode;
  readonly isV2: boolean;
  readonly extended: boolean;
  readonly external: boolean;
  readonly clusterBits: number;
  readonly fileSize: number;
}

/**
 * Mends the L2 entry at `at` where that changes nothing that a guest reads; returns what for, or null when nothing was
 * done. The copied flag of normal clusters depends on refcounts and is not looked at here.
 *
 * In mode `leaks` only a needless subcluster bitmap is dropped, which nobody writes back: the cluster of such an entry
 * is in use, though a check does not count it.
 */
export function mendL2(view: DataView, at: number, rules: MendRules): string | null {
  const hi = view.getUint32(at);
  const lo = view.getUint32(at + 4);
  if ((hi & COMPRESSED) !== 0) return mendCompressed(view, at, hi, rules);
  if (rules.mode === 'leaks' || (hi === 0 && lo === 0)) return null;
  const unaligned = (lo & (2 ** rules.clusterBits - 1) & ~511) !== 0;
  const offset = offsetOf(hi, lo);
  const isZero = rules.extended ? view.getUint32(at + 12) === 0 : (lo & ZERO) !== 0;
  if (unaligned && isZero && !rules.isV2 && !rules.external) {
    view.setUint32(at, 0);
    view.setUint32(at + 4, rules.extended ? 0 : ZERO);
    return 'a preallocated zero cluster that is not aligned loses its place, which nothing reads';
  }
  if (!l2Reserved(hi, lo) || unaligned || (offset >= rules.fileSize && !rules.external)) return null;
  view.setUint32(at, (hi & ~0x3f00_0000) >>> 0);
  view.setUint32(at + 4, (lo & ~0x1fe) >>> 0);
  return 'reserved bits are cleared';
}

function mendCompressed(view: DataView, at: number, hi: number, rules: MendRules): string | null {
  const done: string[] = [];
  if (rules.extended && (view.getUint32(at + 8) !== 0 || view.getUint32(at + 12) !== 0)) {
    view.setUint32(at + 8, 0);
    view.setUint32(at + 12, 0);
    done.push('a compressed cluster has no subcluster bitmap');
  }
  if (rules.mode === 'all' && (hi & COPIED) !== 0) {
    view.setUint32(at, (hi & ~COPIED) >>> 0);
    done.push('a compressed cluster has no copied flag');
  }
  return done.length === 0 ? null : done.join('; ');
}

/** Mends the L1 entry at `at` like {@link mendL2}. */
export function mendL1(view: DataView, at: number, rules: MendRules): string | null {
  const hi = view.getUint32(at);
  const lo = view.getUint32(at + 4);
  if (rules.mode === 'leaks' || !l1Reserved(hi, lo)) return null;
  if ((lo & (2 ** rules.clusterBits - 1) & ~511) !== 0 || offsetOf(hi, lo) >= rules.fileSize) return null;
  view.setUint32(at, (hi & 0x80ff_ffff) >>> 0);
  view.setUint32(at + 4, (lo & ~0x1ff) >>> 0);
  return 'reserved bits are cleared';
}
