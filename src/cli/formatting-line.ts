import type { Created } from '../op/create.ts';
import { encryptionOptions, type Given } from './create-options.ts';
import { listed } from './option-list.ts';

/**
 * The line that says what is about to be made. Scripts read it, so its form is that of qemu-img: effective options in
 * a fixed order, some of them only where they were given, and the size before it is rounded up.
 */
export function formattingLine(
  created: Created,
  given: ReadonlyMap<string, Given>,
  request: { readonly size: number | undefined; readonly allocation: string | undefined },
): string {
  const told = (name: string): [string, string][] => {
    const option = given.get(name);
    return option === undefined ? [] : [[name, option.shown]];
  };
  const size: [string, string] = ['size', String(request.size ?? created.size)];
  // Said by a policy, it is as good as given.
  const preallocation: [string, string][] =
    request.allocation === undefined ? told('preallocation') : [['preallocation', created.preallocation]];
  const { qcow2 } = created;
  const encryption = encryptionOptions(created.format).flatMap(told);
  const words =
    qcow2 === null
      ? [size, ...encryption, ...told('nocow'), ...preallocation, ...told('extent_size_hint')]
      : [
          ...encryption,
          ['cluster_size', String(qcow2.clusterSize)],
          ['extended_l2', switched(given, 'extended_l2', qcow2.extendedL2)],
          ...preallocation,
          ['compression_type', qcow2.compressionType],
          size,
          ...told('compat'),
          ...(qcow2.backing === null
            ? []
            : [
                ['backing_file', listed(qcow2.backing.name)],
                ['backing_fmt', listed(qcow2.backing.format ?? '')],
              ]),
          ...told('data_file'),
          ...told('data_file_raw'),
          ['lazy_refcounts', switched(given, 'lazy_refcounts', qcow2.lazyRefcounts)],
          ['refcount_bits', String(qcow2.refcountBits)],
          ...told('nocow'),
          ...told('extent_size_hint'),
        ];
  return `Formatting '${created.path}', fmt=${created.format} ${words.map(([name, value]) => `${name ?? ''}=${value ?? ''}`).join(' ')}`;
}

function switched(given: ReadonlyMap<string, Given>, name: string, value: boolean): string {
  return given.get(name)?.shown ?? (value ? 'on' : 'off');
}
