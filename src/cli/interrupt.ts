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

/**
 * A signal that is aborted when the process is told to end, for work that must close what it has open: the process ends
 * when that is done, or when it is told so again.
 */
export function stoppable(): AbortSignal {
  const controller = new AbortController();
  for (const [name, code] of Object.entries(EXIT)) {
    process.on(name, () => {
      if (controller.signal.aborted) process.exit(code);
      process.exitCode = code;
      controller.abort();
    });
  }
  return controller.signal;
}
