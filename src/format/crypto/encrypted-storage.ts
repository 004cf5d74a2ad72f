import { alignDown, alignUp, isAligned } from '../../core/align.ts';
import { SpindleError } from '../../core/errors.ts';
import type { Extent } from '../../core/extent.ts';
import { RangeLock } from '../../core/range-lock.ts';
import { readPadded } from '../../core/read.ts';
import { ReadOnlyStorage, type Storage, type StorageCan, type ZeroOptions } from '../../core/storage.ts';
import { SECTOR, type SectorCipher } from './sector-cipher.ts';

/**
 * Gives the plain bytes of a storage that holds encrypted ones. Reading and writing guest data of an encrypted image
 * goes through `view`, always; everything else of the file is not encrypted.
 */
export interface PlainData {
  /**
   * A storage with the offsets of the host's, through which the guest data at `host` is read and written in the clear,
   * for a run that starts at guest offset `guest`.
   */
  view(guest: number, host: number): Storage;
}

/** What the initial vectors count from: the place on the host (LUKS), or the guest's sector (the legacy cipher). */
export type IvBase = { readonly from: 'host'; readonly origin: number } | { readonly from: 'guest' };

/** {@link PlainData} of an image whose secret is known. */
export function plainData(data: Storage, cipher: SectorCipher, base: IvBase): PlainData {
  const lock = new RangeLock();
  let last: EncryptedStorage | undefined;
  return {
    view: (guest, host) => {
      const shift = base.from === 'host' ? -base.origin : guest - host;
      if (last?.shift !== shift) last = new EncryptedStorage(data, cipher, shift, lock);
      return last;
    },
  };
}

/** {@link PlainData} of an image whose secret is not known: using it fails with ENCRYPTED. */
export const lockedData: PlainData = { view: () => locked };

/** Bytes that are encrypted together on their way to the host. */
const CHUNK = 1024 * 1024;

/** Plain bytes over a storage of encrypted sectors; `shift` is what the initial vectors count beside the offset. */
class EncryptedStorage implements Storage {
  readonly can: StorageCan;
  readonly shift: number;
  readonly #next: Storage;
  readonly #cipher: SectorCipher;
  /** Sectors are written whole: a part of one is read, changed and written with nobody else in between. */
  readonly #lock: RangeLock;

  constructor(next: Storage, cipher: SectorCipher, shift: number, lock: RangeLock) {
    this.#next = next;
    this.#cipher = cipher;
    this.shift = shift;
    this.#lock = lock;
    this.can = { ...next.can, zero: false, extents: false };
  }

  get size(): number {
    return this.#next.size;
  }

  read(into: Uint8Array, at: number): Promise<void> {
    const start = alignDown(at, SECTOR);
    const end = alignUp(at + into.length, SECTOR);
    return this.#lock.run(start, end - start, 'shared', async () => {
      const whole = end - start === into.length ? into : new Uint8Array(end - start);
      await this.#readSectors(whole, start);
      if (whole !== into) into.set(whole.subarray(at - start, at - start + into.length));
    });
  }

  async #readSectors(into: Uint8Array, at: number): Promise<void> {
    await readPadded(this.#next, into, at);
    this.#cipher.decrypt(into, (at + this.shift) / SECTOR);
  }

  async write(from: Uint8Array, at: number): Promise<void> {
    for (let done = 0; done < from.length;) {
      const here = at + done;
      const length = Math.min(from.length - done, alignDown(here, SECTOR) + CHUNK - here);
      await this.#writePart(from.subarray(done, done + length), here);
      done += length;
    }
  }

  #writePart(from: Uint8Array, at: number): Promise<void> {
    const start = alignDown(at, SECTOR);
    const end = alignUp(at + from.length, SECTOR);
    const isWhole = end - start === from.length;
    return this.#lock.run(start, end - start, isWhole ? 'shared' : 'exclusive', async () => {
      const sectors = new Uint8Array(end - start);
      if (!isAligned(at, SECTOR)) await this.#readSectors(sectors.subarray(0, SECTOR), start);
      if (!isAligned(at + from.length, SECTOR) && (end - start > SECTOR || isAligned(at, SECTOR)))
        await this.#readSectors(sectors.subarray(-SECTOR), end - SECTOR);
      sectors.set(from, at - start);
      this.#cipher.encrypt(sectors, (start + this.shift) / SECTOR);
      await this.#next.write(sectors, start);
    });
  }

  /** Writes zeroes, encrypted like any other bytes. */
  async zero(at: number, length: number, how: ZeroOptions = {}): Promise<void> {
    if (how.fastOnly === true)
      throw new SpindleError('UNSUPPORTED', 'encrypted data is zeroed by writing only');
    const zeroes = new Uint8Array(Math.min(length, CHUNK));
    for (let done = 0; done < length;) {
      const part = Math.min(length - done, zeroes.length);
      await this.write(part === zeroes.length ? zeroes : zeroes.subarray(0, part), at + done);
      done += part;
    }
  }

  /** Gives whole sectors back; what they read afterwards is noise. */
  async discard(at: number, length: number): Promise<void> {
    const start = alignUp(at, SECTOR);
    const end = alignDown(at + length, SECTOR);
    if (end > start) await this.#next.discard(start, end - start);
  }

  extent(at: number, length: number): Promise<Extent> {
    return Promise.resolve({ offset: at, length, flags: 0 });
  }

  resize(size: number): Promise<void> {
    return this.#next.resize(size);
  }

  flush(): Promise<void> {
    return this.#next.flush();
  }

  close(): Promise<void> {
    return this.#next.close();
  }
}

/** What stands for the plain bytes where no secret was given. */
class LockedStorage extends ReadOnlyStorage {
  // Also past the end of the file nothing can be said.
  readonly size = Number.MAX_SAFE_INTEGER;

  read(): Promise<void> {
    return Promise.reject(needsSecret());
  }

  override write(): Promise<void> {
    return Promise.reject(needsSecret());
  }

  override zero(): Promise<void> {
    return Promise.reject(needsSecret());
  }

  close(): Promise<void> {
    return Promise.resolve();
  }
}

const locked = new LockedStorage();

function needsSecret(): SpindleError {
  return new SpindleError('ENCRYPTED', 'the data is encrypted and no secret was given');
}
