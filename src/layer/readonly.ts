import { SpindleError } from '../core/errors.ts';
import { READ_ONLY, type Storage } from '../core/storage.ts';
import { Layer } from './layer.ts';

/** `next` for reading only: every change fails with READ_ONLY before it reaches `next`. */
export function readOnly(next: Storage): Storage {
  return new ReadOnlyLayer(next);
}

class ReadOnlyLayer extends Layer {
  constructor(next: Storage) {
    super(next, { ...READ_ONLY, extents: next.can.extents, direct: next.can.direct });
  }

  override write(): Promise<void> {
    return refuse();
  }

  override zero(): Promise<void> {
    return refuse();
  }

  override discard(): Promise<void> {
    return refuse();
  }

  override resize(): Promise<void> {
    return refuse();
  }
}

function refuse(): Promise<never> {
  return Promise.reject(new SpindleError('READ_ONLY', 'opened for reading only'));
}
