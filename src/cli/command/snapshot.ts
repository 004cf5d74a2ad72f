import { Option } from 'commander';
import { SpindleError } from '../../core/errors.ts';
import { applySnapshot, createSnapshot, deleteSnapshot, listSnapshots } from '../../op/snapshots.ts';
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
    newCommand(program, 'snapshot', 'List, make, apply and delete the internal snapshots of an image.', [
      ['disk.qcow2', 'the snapshots of an image (for JSON see info)'],
      ['-l -U disk.qcow2', 'the same, though a virtual machine is using the image'],
      ['-c before-update disk.qcow2', 'make a snapshot of the disk as it is'],
      ['-a before-update disk.qcow2', 'make the disk what it was then; what it holds now is lost'],
      ['-d before-update disk.qcow2', 'delete a snapshot and free what only it held'],
    ]),
  )
    .addOption(new Option('-l, --list', 'list the snapshots (this is the default)'))
    .addOption(new Option('-c, --create <NAME>', 'make a snapshot'))
    .addOption(new Option('-a, --apply <NAME>', 'go back to a snapshot, by its id or else its name'))
    .addOption(
      new Option(
        '-d, --delete <NAME>',
        program === 'qemu-img'
          ? 'delete the first snapshot of that name'
          : 'delete a snapshot, by its id or else its name',
      ),
    )
    .addOption(new Option('-q, --quiet', 'accepted as qemu-img does; a list is printed all the same'))
    .action(async (file: string, flags: Flags) => {
      const { path, format, share, secret, gate } = sourceOf(file, flags);
      const { create, apply, delete: remove } = flags;
      const asked = [flags.list, create, apply, remove].filter((one) => one !== undefined);
      if (asked.length > 1) {
        throw new SpindleError('BAD_OPTION', 'choose one of --list, --create, --apply and --delete', {
          path,
        });
      }
      if (share && flags.list !== true && asked.length > 0) {
        throw new SpindleError('BAD_OPTION', '-U is for looking; snapshots are changed alone', { path });
      }
      // As qemu-img does: deleting goes by name, and the first will do.
      const compatible = program === 'qemu-img';
      if (create !== undefined) await createSnapshot(path, create, { format, secret, gate });
      else if (apply !== undefined) {
        await applySnapshot(path, apply, { format, secret, gate, find: compatible ? 'first' : 'unique' });
      } else if (remove !== undefined) {
        await deleteSnapshot(path, remove, { format, secret, gate, find: compatible ? 'name' : 'unique' });
      } else {
        out(
          snapshotTable(await listSnapshots(path, { format, share }))
            .map((line) => `${line}\n`)
            .join(''),
        );
      }
    }),
);
