import { readFileSync } from 'node:fs';

/** The file system that a path is on. */
export interface Mount {
  readonly type: string;
  readonly source: string;
  readonly point: string;
  /** Options of the mount and of the file system. */
  readonly options: readonly string[];
}

/** The mount that holds the absolute, resolved `path`; undefined where the system does not tell. */
export function mountOf(path: string): Mount | undefined {
  let text: string;
  try {
    text = readFileSync('/proc/self/mountinfo', 'utf8');
  } catch {
    return undefined;
  }
  let found: Mount | undefined;
  for (const line of text.split('\n')) {
    const mount = parseMount(line);
    // Of two mounts on one point the later one is seen.
    if (mount !== undefined && holds(mount.point, path) && mount.point.length >= (found?.point.length ?? 0))
      found = mount;
  }
  return found;
}

function holds(point: string, path: string): boolean {
  return point === '/' || path === point || path.startsWith(`${point}/`);
}

/** One line of mountinfo: id, parent, device, root, point, options, tags..., `-`, type, source, more options. */
export function parseMount(line: string): Mount | undefined {
  const words = line.split(' ');
  const dash = words.indexOf('-', 6);
  const [point, options] = [words[4], words[5]];
  const [type, source, more] = words.slice(dash + 1);
  if (dash < 0 || point === undefined || options === undefined || type === undefined || source === undefined)
    return undefined;
  const all = [...options.split(','), ...(more ?? '').split(',')].filter((option) => option !== '');
  return { type, source: unescape(source), point: unescape(point), options: [...new Set(all)] };
}

/** Blanks and backslashes stand as octal escapes. */
function unescape(text: string): string {
  return text.replace(/\\([0-7]{3})/g, (_, digits: string) =>
    String.fromCharCode(Number.parseInt(digits, 8)),
  );
}
