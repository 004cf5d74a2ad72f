import { sameBytes } from '../core/bytes.ts';
import { wipe } from '../core/crypto.ts';
import { printable, SpindleError } from '../core/errors.ts';

/** Bytes of a passphrase that can be typed. */
const LONGEST = 512;

const [ENTER, NEWLINE, INTERRUPT, END, BACKSPACE, DELETE, KILL, SPACE] = [13, 10, 3, 4, 8, 127, 21, 32];

/**
 * Asks for the passphrase of an image on the terminal, without showing it; twice for one that is being made. `what` is
 * the passphrase called. Null where there is no terminal to ask on.
 * @throws SpindleError ABORTED (after Ctrl-C the exit code is 130), BAD_OPTION when the two differ or are too long
 */
export async function askSecret(
  image: string | undefined,
  twice: boolean,
  what = 'Passphrase',
): Promise<Uint8Array | null> {
  if (!process.stdin.isTTY || !process.stderr.isTTY) return null;
  const first = await typed(`${what} of ${printable(image ?? 'the image')}: `);
  if (!twice) return first;
  const second = await typed('Once more: ');
  const isSame = sameBytes(first, second);
  wipe(second);
  if (isSame) return first;
  wipe(first);
  throw new SpindleError('BAD_OPTION', 'the two passphrases differ');
}

/** The exit code of a program that Ctrl-C has ended. */
const INTERRUPTED = 130;

function typed(question: string): Promise<Uint8Array> {
  const { stdin, stderr } = process;
  const buffer = new Uint8Array(LONGEST);
  let length = 0;
  let isTooLong = false;
  // First: what is typed ahead must not show either.
  stdin.setRawMode(true);
  stderr.write(question);
  return new Promise<Uint8Array>((resolve, reject) => {
    const finish = (settle: () => void): void => {
      stdin.off('data', take).off('end', hungUp).off('error', hungUp);
      stdin.setRawMode(false);
      stdin.pause();
      stderr.write('\n');
      settle();
    };
    const stop = (): void => {
      process.exitCode = INTERRUPTED;
      reject(new SpindleError('ABORTED', 'stopped on request'));
    };
    const hungUp = (): void => {
      finish(() => {
        reject(new SpindleError('ABORTED', 'the terminal was closed'));
      });
    };
    const done = (): void => {
      if (isTooLong) reject(tooLong());
      else resolve(buffer.slice(0, length));
    };
    const take = (chunk: Buffer): void => {
      for (const byte of chunk) {
        if (byte === ENTER || byte === NEWLINE || byte === END) {
          finish(done);
          break;
        } else if (byte === INTERRUPT) {
          finish(stop);
          break;
        } else if (byte === KILL) [length, isTooLong] = [0, false];
        else if (byte === BACKSPACE || byte === DELETE) length = withoutLast(buffer, length);
        // Other control characters are keys that mean nothing here.
        else if (byte < SPACE) continue;
        else if (length < LONGEST) buffer[length++] = byte;
        else isTooLong = true;
      }
      chunk.fill(0);
    };
    stdin.on('data', take).on('end', hungUp).on('error', hungUp);
    stdin.resume();
  }).finally(() => {
    wipe(buffer);
  });
}

function tooLong(): SpindleError {
  return new SpindleError(
    'BAD_OPTION',
    `a passphrase that is typed has at most ${String(LONGEST)} bytes; put a longer one into a file`,
  );
}

/** The length without the last character, which may have several bytes in UTF-8. */
function withoutLast(buffer: Uint8Array, length: number): number {
  let end = length;
  do end = Math.max(0, end - 1);
  while (end > 0 && ((buffer[end] ?? 0) & 0xc0) === 0x80);
  return end;
}
