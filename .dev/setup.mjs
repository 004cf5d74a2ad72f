// Installs, builds the addon (when cargo is there) and the TypeScript. Does nothing where nothing changed.
import { existsSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { hashOf, have, once, root, run } from './common.mjs';

const abi = `${process.platform}-${process.arch}-${process.versions.modules}`;
const npm = process.platform === 'win32' ? 'npm.cmd' : 'npm';

// Modules that compile on install (fs-ext) find the headers of this very Node, when it brought them.
const prefix = [
  dirname(dirname(process.execPath)),
  join(dirname(dirname(process.execPath)), 'node_modules', `node-${process.platform}-${process.arch}`),
].find((folder) => existsSync(join(folder, 'include', 'node', 'node.h')));
const env = prefix === undefined ? process.env : { ...process.env, npm_config_nodedir: prefix };

const installed = once('install', hashOf(['package.json', 'package-lock.json'], abi), () => {
  console.log('spindle: installing packages');
  run(npm, ['ci', '--no-fund', '--no-audit', '--loglevel=error'], { env });
});
if (!installed && !existsSync(join(root, 'node_modules'))) run(npm, ['ci', '--loglevel=error'], { env });

const addonOff = process.env.SPINDLE_ADDON === 'off';
if (addonOff) {
  console.log('spindle: SPINDLE_ADDON=off, running on the TypeScript twins');
} else if (have('cargo')) {
  const sources = ['native/src', 'native/Cargo.toml', 'native/Cargo.lock', 'native/build.rs'];
  once('addon', hashOf(sources, process.platform, process.arch), () => {
    console.log('spindle: building the addon');
    run(npm, ['run', '--silent', 'build:native']);
  });
} else {
  console.log('spindle: no cargo here, so no addon; running on the TypeScript twins (slower, same bytes)');
}

const scripts = ['.dev/tsconfig.build.json', '.dev/build.mjs', '.dev/code-cache.mjs'];
const build = hashOf(['src', 'tsconfig.json', 'package-lock.json', ...scripts]);
once('build', build, () => {
  console.log('spindle: building the TypeScript');
  run(process.execPath, [join(root, '.dev', 'build.mjs')]);
});
// Compiled code is good for one version of V8; the build has made it for its own.
once('code-cache', hashOf([], build, process.versions.v8, process.arch), () => {
  run(process.execPath, [join(root, '.dev', 'code-cache.mjs')]);
});
