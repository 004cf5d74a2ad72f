import { removeLeftovers } from '../storage/replace.ts';

const EXIT = { SIGINT: 130, SIGTERM: 143, SIGHUP: 129 } as const;

/** A signal that is aborted when the process is told to end. What was half made is removed before it ends. */
export function interruptible(): AbortSignal {
  const controller = new AbortController();
  for (const [name, code] of Object.entries(EXIT)) {
    process.once(name, () => {
      controller.abort();
      removeLeftovers();
      process.exit(code);
    });
  }
  return controller.signal;
}
