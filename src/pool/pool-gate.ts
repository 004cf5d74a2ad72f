import { realpathSync } from 'node:fs';
import { denied, type Gate } from '../format/gate.ts';
import { fileGate } from '../op/file-gate.ts';
import { besideName, fileOf } from '../op/image-name.ts';

/**
 * The gate for images in pools: they may refer to files in the directories of active pools, and to nothing else. What a
 * guest or a stranger wrote into an image must not make spindle read files of the host.
 */
export function poolGate(folders: readonly string[]): Gate {
  const files = fileGate({ share: true });
  const roots = folders.flatMap((folder) => realOf(folder) ?? []);
  return (reference) => {
    const path = fileOf(besideName(reference.name, reference.from));
    const real = path === null ? undefined : realOf(path);
    // What is not there is told so by the gate below.
    if (real !== undefined && !roots.some((root) => real.startsWith(`${root}/`)))
      return Promise.reject(denied(reference, 'it lies in no active pool'));
    if (path === null) return Promise.reject(denied(reference, 'volumes refer to local files only'));
    return files(reference);
  };
}

function realOf(path: string): string | undefined {
  try {
    return realpathSync(path);
  } catch {
    return undefined;
  }
}
