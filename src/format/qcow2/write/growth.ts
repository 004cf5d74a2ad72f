import { alignUp } from '../../../core/align.ts';

const LEAST = 1024 * 1024;
const MOST = 64 * 1024 * 1024;

/**
 * The size in bytes that a file gets which has to reach to `end`: it grows in steps of about an eighth, within bounds; what
 * is too much is cut off when the image is closed.
 */
export function grownSize(end: number): number {
  const step = Math.min(MOST, Math.max(LEAST, alignUp(end / 8, LEAST)));
  return alignUp(end + step - 1, LEAST);
}
