import { CommanderError } from 'commander';
import { SpindleError } from '../core/errors.ts';
import type { WarningAbout } from '../op/create.ts';
import { complain, oneLine } from './output.ts';

/** Tells of a failure in one line on standard error; SPINDLE_DEBUG=1 adds its code, and where it happened. */
export function report(error: unknown, program: string, usage: string): void {
  complain(`${program}: ${sentence(error, usage)}`);
  if (process.env['SPINDLE_DEBUG'] !== '1') return;
  if (error instanceof SpindleError) complain(`    code: ${error.code}`);
  for (let next: unknown = error; next instanceof Error; next = next.cause) {
    for (const line of (next.stack ?? String(next)).split('\n')) complain(`    ${line.trim()}`);
  }
}

function sentence(error: unknown, usage: string): string {
  if (error instanceof SpindleError) return aboutPath(error);
  if (error instanceof CommanderError) {
    const message = oneLine(error.message.replace(/^error: /, '').replace(/\.$/, ''));
    return `${message}; see '${usage} --help'`;
  }
  const message = error instanceof Error ? `${error.name}: ${error.message}` : String(error);
  return `internal error: ${message} (set SPINDLE_DEBUG=1 to see where, and please report it)`;
}

function aboutPath(error: SpindleError): string {
  const { path, message } = error;
  if (path === undefined || message.startsWith(`${path}:`)) return message;
  return `${path}: ${message}`;
}

/** Tells of something that did not keep the command from doing its work. */
export function warn(program: string, path: string, message: string): void {
  complain(`${program}: ${path}: warning: ${message}`);
}

/** What hears the warnings about a new image. As qemu-img it keeps still about what that does not warn of. */
export function warnings(program: string, path: string): (message: string, about: WarningAbout) => void {
  return (message, about) => {
    if (program !== 'qemu-img' || about !== 'encryption') warn(program, path, message);
  };
}
