/** What each verb does, in the words of the overview and of the completion scripts. */
export const VERBS: Readonly<Record<string, string>> = {
  create: 'make a new image',
  info: 'tell what an image is',
  map: 'tell where the bytes of an image are',
  check: 'look for damage in an image',
  convert: 'copy the disk of an image to another image',
  compare: 'tell whether two images hold the same disk',
  dd: 'copy a part of a disk to a new image',
  measure: 'tell how large an image will be',
  bench: 'time requests to an image',
  resize: 'change the size of a disk',
  allocate: 'make an existing image thin or thick',
  amend: 'change options of an existing image',
  snapshot: 'list, make, apply and delete internal snapshots',
  bitmap: 'make, delete, merge and switch dirty bitmaps',
  key: 'list, add, remove and change the passphrases of a LUKS encrypted image',
  commit: 'write an overlay into its backing file',
  rebase: 'put an overlay on another backing file',
  pool: 'define, start, inspect and remove storage pools (the pool verbs of virsh)',
  vol: 'make, inspect, change and remove volumes of pools (the vol verbs of virsh)',
  doctor: 'tell what this host and a file system can do',
  completion: 'print a completion script for a shell',
};

/** The file that holds a verb, and what it is called there; undefined where there is none. `pool-start` is in `pool`. */
export function fileOfVerb(
  name: string,
): { readonly file: string; readonly args: readonly string[] } | undefined {
  if (Object.hasOwn(VERBS, name)) return { file: name, args: [] };
  // For completion scripts; not shown.
  if (name === 'pool--names') return { file: 'names', args: [] };
  if (/^(pool-.|find-storage-pool-sources)/.test(name)) return { file: 'pool', args: [name] };
  return name.startsWith('vol-') ? { file: 'vol', args: [name] } : undefined;
}

/** Verbs below a verb, by both words. What is no such word is an argument of the verb, as qemu-img has it. */
export const SUBVERBS: Readonly<Record<string, string>> = {
  'bench allocation': 'measure what thin and thick disks cost on a store',
  'bench compare': 'put two studies side by side',
  'bench image': 'time reads and writes of images: patterns, mixes, and where the latencies lie',
};
