import { Option } from 'commander';
import { SpindleError } from '../../core/errors.ts';
import { listSnapshots } from '../../op/snapshots.ts';
import { newCommand, verb } from '../command-line.ts';
import { out } from '../output.ts';
import { snapshotTable } from '../snapshot-table.ts';
import { sourceOf, withSourceOptions, type SourceFlags } from '../source.ts';

interface Flags extends SourceFlags {
  readonly list?: boolean;
  readonly create?: string;
  readonly apply?: string;
  readonly delete?: string;
  readonly quiet?: boolean;
}

/** The command line of `snapshot`. */
export const { define, run } = verb((program) =>
  withSourceOptions(
    newCommand(program, 'snapshot', 'List the internal snapshots of an image. (For JSON see info.)', [
      ['disk.qcow2', 'the snapshots of an image'],
      ['-l -U disk.qcow2', 'the same, though a virtual machine is using the image'],
    ]),
  )
    .addOption(new Option('-l, --list', 'list the snapshots (this is the default)'))
    .addOption(new Option('-c, --create <NAME>', 'make a snapshot: not in this version'))
    .addOption(new Option('-a, --apply <NAME>', 'go back to a snapshot: not in this version'))
    .addOption(new Option('-d, --delete <NAME>', 'delete a snapshot: not in this version'))
    .addOption(new Option('-q, --quiet', 'accepted as qemu-img does; a list is printed all the same'))
    .action(async (file: string, flags: Flags) => {
      const { path, format, share } = sourceOf(file, flags);
      for (const verbName of ['create', 'apply', 'delete'] as const) {
        if (flags[verbName] === undefined) continue;
        throw new SpindleError(
          'UNSUPPORTED',
          `this version of spindle lists snapshots; it cannot ${verbName} them yet`,
          { path },
        );
      }
      out(
        snapshotTable(await listSnapshots(path, { format, share }))
          .map((line) => `${line}\n`)
          .join(''),
      );
    }),
);
