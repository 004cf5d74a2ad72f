// Leaves what V8 makes of the code of each verb beside it, for this version of Node (src/cli/load-verb.ts uses it). All
// functions are compiled, so nothing needs to be run for it.
import { mkdirSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { setFlagsFromString } from 'node:v8';
import { Script } from 'node:vm';
import { root } from './common.mjs';

const folder = join(root, 'dist', 'cli', 'command');
const cache = join(root, 'dist', 'cli', 'cache');
const { compiledPath, moduleSource } = await import(join(root, '.cache', 'load-verb.mjs'));

mkdirSync(cache, { recursive: true });
for (const name of readdirSync(folder)) {
  const path = join(folder, name);
  setFlagsFromString('--no-lazy');
  const script = new Script(moduleSource(path), { filename: path });
  // V8 takes code only where its flags are those that it was compiled with.
  setFlagsFromString('--lazy');
  const compiled = compiledPath(path);
  const old = `${name.slice(0, -'.cjs'.length)}-`;
  for (const other of readdirSync(cache))
    if (other.startsWith(old) && !compiled.endsWith(other)) rmSync(join(cache, other));
  writeFileSync(compiled, script.createCachedData());
}
