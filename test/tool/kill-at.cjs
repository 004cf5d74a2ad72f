// Loaded into a program before its own code (node --require): ends it by SIGKILL right before the change of a file that
// KILL_AT counts to, from 1. Says on descriptor 3 what that was, if it came so far.
const fs = require('node:fs');

let left = Number(process.env.KILL_AT);
const CHANGES = [
  ...[
    'rename',
    'unlink',
    'rm',
    'rmdir',
    'mkdir',
    'symlink',
    'link',
    'fsync',
    'fdatasync',
    'ftruncate',
    'truncate',
  ],
  ...['write', 'writev', 'writeFile', 'appendFile', 'chmod', 'fchmod', 'chown', 'fchown', 'copyFile'],
];

function counted(name) {
  if (--left !== 0) return;
  try {
    fs.writeSync(3, `${name}\n`);
  } catch {
    // Nobody wants to know.
  }
  process.kill(process.pid, 'SIGKILL');
}

function hook(owner, name, isWrite) {
  const plain = owner[name];
  if (typeof plain !== 'function') return;
  const hooked = function (...args) {
    // What a program prints changes no file.
    if (!(isWrite && (args[0] === 1 || args[0] === 2 || args[0] === 3))) counted(name);
    return plain.apply(this, args);
  };
  // util.promisify looks for these.
  for (const symbol of Object.getOwnPropertySymbols(plain)) hooked[symbol] = plain[symbol];
  owner[name] = hooked;
}

for (const name of CHANGES) {
  const isWrite = name.startsWith('write');
  hook(fs, name, isWrite);
  hook(fs.promises, name, isWrite);
  if (name !== 'write') hook(fs, `${name}Sync`, isWrite);
}
// Handles have methods of their own, and a class that is not exported.
let handles = false;
function hookHandle(handle) {
  if (handles) return handle;
  handles = true;
  for (const name of ['sync', 'datasync', 'truncate', 'write', 'writeFile', 'chmod', 'chown'])
    hook(Object.getPrototypeOf(handle), name, false);
  return handle;
}

for (const [owner, name] of [
  [fs, 'open'],
  [fs, 'openSync'],
  [fs.promises, 'open'],
]) {
  const plain = owner[name];
  owner[name] = function (path, flags, ...rest) {
    const creates =
      typeof flags === 'number' ? (flags & fs.constants.O_CREAT) !== 0 : /^[wa]/.test(flags ?? 'r');
    if (creates) counted('open');
    const opened = plain.call(this, path, flags, ...rest);
    return owner === fs.promises ? opened.then(hookHandle) : opened;
  };
}
