import { reserveNew } from '../../core/allocation.ts';
import { SpindleError } from '../../core/errors.ts';
import type { Storage } from '../../core/storage.ts';
import { stopIfAborted, type Working } from '../../core/working.ts';
import type { Crypto } from '../../core/crypto.ts';
import type { LuksOptions } from '../crypto/cipher-spec.ts';
import { plainData } from '../crypto/encrypted-storage.ts';
import { makeLuks } from '../crypto/luks-create.ts';

/** What a new LUKS volume is made of. The caller wipes the secret. */
export interface LuksCreateOptions {
  /** Bytes of the disk: a multiple of 512. */
  readonly size: number;
  /** `full` writes encrypted zeroes; otherwise the disk reads as noise until it is written. */
  readonly preallocation: 'off' | 'falloc' | 'full';
  readonly luks: LuksOptions;
  readonly crypto: Crypto;
  readonly secret: Uint8Array;
}

/** Bytes of zeroes between two looks at the signal. */
const STEP = 4 * 1024 * 1024;

/**
 * Makes the empty `storage` a LUKS volume. The header is written last.
 * @throws SpindleError BAD_OPTION, NO_SPACE, UNSUPPORTED, ABORTED
 */
export async function createLuks(
  storage: Storage,
  options: LuksCreateOptions,
  working: Working = {},
): Promise<void> {
  const { size, preallocation, crypto } = options;
  const made = await makeLuks(crypto, options.luks, options.secret);
  const origin = made.payloadOffset;
  const length = origin + size;
  if (storage.can.resize) await storage.resize(length);
  else if (storage.size < length) {
    throw new SpindleError(
      'NO_SPACE',
      `the device has ${String(storage.size)} bytes; the image needs ${String(length)}`,
    );
  } else await storage.zero(0, origin);
  if (preallocation === 'falloc') await reserveNew(storage, 0, length, working);
  if (preallocation === 'full') {
    const view = plainData(storage, made.cipher, { from: 'host', origin }).view(0, origin);
    for (let done = 0; done < size;) {
      stopIfAborted(working.signal);
      const step = Math.min(STEP, size - done);
      await view.zero(origin + done, step);
      done += step;
      working.onProgress?.(done, size);
    }
  }
  await storage.write(made.bytes, 0);
}
