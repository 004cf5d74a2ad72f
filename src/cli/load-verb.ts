import { readFileSync, statSync } from 'node:fs';
import { createRequire } from 'node:module';
import { dirname } from 'node:path';
import { Script } from 'node:vm';
import type { Verb } from './command-line.ts';

/*
 * Half of what a short command costs above an empty Node is compiling its code. The build leaves what V8 compiled in
 * `cache`, by the version of V8, and by the time of the file, so that the code of another build is never run.
 */

/** Loads the code of a verb from `path`, a CommonJS file: compiled already, where the build left that for this Node. */
export function loadVerb(path: string): Verb {
  const compiled = readCompiled(path);
  const require = createRequire(path);
  if (compiled === undefined) return require(path) as Verb;
  const script = new Script(moduleSource(path), { filename: path, cachedData: compiled });
  const module = { exports: {} };
  require.cache[path] = module as NodeJS.Module;
  const run = script.runInThisContext() as (...scope: unknown[]) => void;
  run(module.exports, require, module, path, dirname(path));
  return module.exports as Verb;
}

/** The source of a CommonJS file as the function of its scope that Node makes of it. */
export function moduleSource(path: string): string {
  return `(function (exports, require, module, __filename, __dirname) {${readFileSync(path, 'utf8')}\n})`;
}

/** Where the compiled code of `path` lies, or would lie. */
export function compiledPath(path: string): string {
  const name = path.slice(dirname(path).length + 1, -'.cjs'.length);
  const time = Math.floor(statSync(path).mtimeMs).toString(36);
  return `${dirname(path)}/../cache/${name}-${time}-${process.arch}-${process.versions.v8}`;
}

function readCompiled(path: string): Buffer | undefined {
  try {
    return readFileSync(compiledPath(path));
  } catch {
    return undefined;
  }
}
