import { ALLOCATION_POLICIES, type AllocationPolicy } from '../core/allocation.ts';
import { SpindleError } from '../core/errors.ts';
import { parseSize } from '../core/size.ts';
import { create } from '../op/create.ts';

/** What is measured: a way to make an image. */
export interface Subject {
  readonly id: string;
  readonly format: 'raw' | 'qcow2';
  readonly policy: AllocationPolicy | 'metadata';
  /** The same as the first subject of its format, measured again to see what chance does. */
  readonly control: boolean;
  readonly overlay: boolean;
  readonly clusterSize?: number;
  readonly extendedL2?: boolean;
}

/** Subjects where none are named, without the controls that go with them. */
export const DEFAULT_SUBJECTS = [
  ...ALLOCATION_POLICIES.map((policy) => `raw-${policy}`),
  ...ALLOCATION_POLICIES.map((policy) => `qcow2-${policy}`),
];

/**
 * The subjects of names such as `raw-thin`, `qcow2-metadata`, `qcow2-overlay` or `qcow2-thin:cluster_size=128k,extended_l2=on`,
 * and for each format a control: its first subject again.
 * @throws SpindleError BAD_OPTION
 */
export function subjectsOf(names: readonly string[]): Subject[] {
  const subjects = names.map(subjectOf);
  const twice = subjects.find(({ id }, at) => subjects.findIndex((other) => other.id === id) !== at);
  if (twice !== undefined) throw new SpindleError('BAD_OPTION', `the subject ${twice.id} is named twice`);
  return (['raw', 'qcow2'] as const).flatMap((format) => {
    const own = subjects.filter((subject) => subject.format === format);
    const [first] = own;
    return first === undefined ? [] : [...own, { ...first, id: `${format}-control`, control: true }];
  });
}

function subjectOf(name: string): Subject {
  const bad = (why: string): SpindleError => new SpindleError('BAD_OPTION', `the subject '${name}': ${why}`);
  const [base = '', options = ''] = name.split(':');
  const [format, ...rest] = base.split('-');
  const kind = rest.join('-');
  if (format !== 'raw' && format !== 'qcow2') throw bad('it begins with raw- or qcow2-');
  const known: readonly string[] = [
    ...ALLOCATION_POLICIES,
    ...(format === 'qcow2' ? ['metadata', 'overlay'] : []),
  ];
  if (!known.includes(kind)) throw bad(`${format} has ${known.join(', ')}`);
  if (format === 'raw' && options !== '') throw bad('only qcow2 has options');
  const values = new Map(
    options
      .split(',')
      .map((option): [string, string] => [option.split('=')[0] ?? '', option.split('=')[1] ?? '']),
  );
  values.delete('');
  const clusterSize = values.get('cluster_size');
  const extendedL2 = values.get('extended_l2');
  for (const key of values.keys())
    if (key !== 'cluster_size' && key !== 'extended_l2')
      throw bad('options are cluster_size and extended_l2');
  return {
    id: name,
    format,
    policy: kind === 'overlay' ? 'thin' : (kind as Subject['policy']),
    control: false,
    overlay: kind === 'overlay',
    ...(clusterSize === undefined ? {} : { clusterSize: parseSize(clusterSize) }),
    ...(extendedL2 === undefined ? {} : { extendedL2: extendedL2 === 'on' }),
  };
}

/** Makes a fresh image; durable when it resolves. `base` is there for overlays. @throws as {@link create} */
export async function makeImage(
  path: string,
  { format, policy, overlay, clusterSize, extendedL2 }: Subject,
  size: number,
  base: string,
  signal?: AbortSignal,
): Promise<void> {
  await create({
    ...{ path, format, size, signal },
    ...(policy === 'metadata' ? { preallocation: 'metadata' as const } : { allocation: policy }),
    ...(format === 'qcow2'
      ? { qcow2: { ...(clusterSize && { clusterSize }), ...(extendedL2 && { extendedL2 }) } }
      : {}),
    ...(overlay ? { backing: { name: base, format: 'raw' } } : {}),
  });
}
