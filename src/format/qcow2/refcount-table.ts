import { TWO_32 } from '../../core/bytes.ts';
import { TABLE_ENTRY } from './layout.ts';

/** Bits 9-63 of refcount table entry `index`: the offset of a refcount block, possibly beyond what a number can hold. */
export function refcountBlockOffset(table: DataView, index: number): number {
  const hi = table.getUint32(index * TABLE_ENTRY);
  const lo = table.getUint32(index * TABLE_ENTRY + 4);
  return hi * TWO_32 + ((lo & 0xffff_fe00) >>> 0);
}

/** Whether reserved bits of refcount table entry `index` are set. */
export function refcountTableReserved(table: DataView, index: number): boolean {
  return (table.getUint32(index * TABLE_ENTRY + 4) & 0x1ff) !== 0;
}
