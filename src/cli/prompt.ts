import { sameBytes } from '../core/bytes.ts';
import { wipe } from '../core/crypto.ts';
import { printable, SpindleError } from '../core/errors.ts';

/** Bytes of a passphrase that can be typed. */
const LONGEST = 512;

const [ENTER, NEWLINE, INTERRUPT, END, BACKSPACE, DELETE, KILL] = [13, 10, 3, 4, 8, 127, 21];

/**
 * Asks for the passphrase of an image on the terminal, without showing it; twice for one that is being made. Null
 * where there is no terminal to ask on.
 * @throws SpindleError ABORTED, BAD_OPTION when the two differ
 */
export async function askSecret(image: string | undefined, twice: boolean): Promise<Uint8Array | null> {
  if (!process.stdin.isTTY || !process.stderr.isTTY) return null;
  const first = await typed(`Passphrase of ${printable(image ?? 'the image')}: `);
  if (!twice) return first;
  const second = await typed('Once more: ');
  const isSame = sameBytes(first, second);
  wipe(second);
  if (isSame) return first;
  wipe(first);
  throw new SpindleError('BAD_OPTION', 'the two passphrases differ');
}

function typed(question: string): Promise<Uint8Array> {
  const { stdin, stderr } = process;
  const buffer = new Uint8Array(LONGEST);
  let length = 0;
  stderr.write(question);
  stdin.setRawMode(true);
  return new Promise((resolve, reject) => {
    const finish = (): void => {
      stdin.off('data', take);
      stdin.setRawMode(false);
      stdin.pause();
      stderr.write('\n');
    };
    const take = (chunk: Buffer): void => {
      for (const byte of chunk) {
        if (byte === ENTER || byte === NEWLINE || byte === END) {
          finish();
          resolve(buffer.slice(0, length));
          break;
        } else if (byte === INTERRUPT) {
          finish();
          reject(new SpindleError('ABORTED', 'stopped on request'));
          break;
        } else if (byte === KILL) length = 0;
        else if (byte === BACKSPACE || byte === DELETE) length = withoutLast(buffer, length);
        else if (length < LONGEST) buffer[length++] = byte;
      }
      chunk.fill(0);
    };
    stdin.on('data', take);
    stdin.resume();
  }).finally(() => {
    wipe(buffer);
  }) as Promise<Uint8Array>;
}

/** The length without the last character, which may have several bytes in UTF-8. */
function withoutLast(buffer: Uint8Array, length: number): number {
  let end = length;
  do end = Math.max(0, end - 1);
  while (end > 0 && ((buffer[end] ?? 0) & 0xc0) === 0x80);
  return end;
}
