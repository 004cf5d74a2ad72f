import type { Backend } from '../backend.ts';
import {
  buildDirectory,
  createFile,
  deleteDirectory,
  deleteFile,
  directoryPermissions,
  filesUsage,
  findFile,
  guardOf,
  hasDirectory,
  listFiles,
  needDirectory,
  refreshFiles,
  resizeFile,
  setGuardFile,
} from './files.ts';

/** What all backends share whose volumes are files of a directory. */
export const FILE_VOLUMES = {
  refresh: refreshFiles,
  usage: filesUsage,
  permissions: directoryPermissions,
  volumes: listFiles,
  volume: findFile,
  createVolume: createFile,
  deleteVolume: deleteFile,
  resizeVolume: resizeFile,
  guard: guardOf,
  setGuard: setGuardFile,
} as const;

/** A pool that is a directory. */
export const dirBackend: Backend = {
  ...FILE_VOLUMES,
  build: ({ pool }) => buildDirectory(pool),
  start: ({ pool }) => {
    needDirectory(pool);
    return Promise.resolve();
  },
  stop: () => Promise.resolve(),
  delete: ({ pool }) => deleteDirectory(pool),
  check: ({ pool }) => Promise.resolve(hasDirectory(pool)),
};
