/** What each verb does, in the words of the overview and of the completion scripts. */
export const VERBS: Readonly<Record<string, string>> = {
  create: 'make a new image',
  info: 'tell what an image is',
  map: 'tell where the bytes of an image are',
  check: 'look for damage in an image',
  convert: 'copy the disk of an image to another image',
  resize: 'change the size of a disk',
  amend: 'change options of an existing image',
  snapshot: 'list, make, apply and delete internal snapshots',
  bitmap: 'make, delete, merge and switch dirty bitmaps',
  key: 'list, add, remove and change the passphrases of a LUKS encrypted image',
  commit: 'write an overlay into its backing file',
  rebase: 'put an overlay on another backing file',
  doctor: 'tell what this host and a file system can do',
  completion: 'print a completion script for a shell',
};

/** Verbs of qemu-img that spindle does not have yet. */
export const LATER: readonly string[] = ['bench', 'compare', 'dd', 'measure'];
