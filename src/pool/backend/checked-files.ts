import type { Backend, Context } from '../backend.ts';
import { FILE_VOLUMES } from './dir.ts';

/** The volumes of a directory, before each look at which something is made sure of: that it is mounted, and answers. */
export function checkedFiles(
  ready: (context: Context) => Promise<void>,
): Omit<Backend, 'start' | 'stop' | 'check'> {
  const after =
    <A extends unknown[], T>(work: (context: Context, ...rest: A) => Promise<T>) =>
    async (context: Context, ...rest: A): Promise<T> => {
      await ready(context);
      return work(context, ...rest);
    };
  return {
    refresh: after(FILE_VOLUMES.refresh),
    usage: after(FILE_VOLUMES.usage),
    permissions: after(FILE_VOLUMES.permissions),
    volumes: after(FILE_VOLUMES.volumes),
    volume: after(FILE_VOLUMES.volume),
    createVolume: after(FILE_VOLUMES.createVolume),
    deleteVolume: after(FILE_VOLUMES.deleteVolume),
    resizeVolume: after(FILE_VOLUMES.resizeVolume),
    guard: after(FILE_VOLUMES.guard),
    setGuard: after(FILE_VOLUMES.setGuard),
  };
}
