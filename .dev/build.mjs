// Compiles src to dist: the library file by file (with types), the command line as one CommonJS file a verb, because
// Node starts a bundled CommonJS file fastest and every verb should load only its own code.
import { readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { root, run } from './common.mjs';

rmSync(join(root, 'dist'), { recursive: true, force: true });
rmSync(join(root, '.cache', 'build.tsbuildinfo'), { force: true });
run(process.execPath, [
  join(root, 'node_modules', 'typescript', 'bin', 'tsc'),
  '-p',
  join(root, '.dev', 'tsconfig.build.json'),
]);

// The compiler turns './x.ts' into './x.js' in programs, not in declarations.
for (const name of readdirSync(join(root, 'dist'), { recursive: true })) {
  if (!name.endsWith('.d.ts')) continue;
  const path = join(root, 'dist', name);
  writeFileSync(
    path,
    readFileSync(path, 'utf8').replace(/(from '|import\(")(\.[^'"]+)\.ts(['"])/g, '$1$2.js$3'),
  );
}

const { build } = await import('esbuild');
const commands = readdirSync(join(root, 'src', 'cli', 'command')).map((name) => `src/cli/command/${name}`);
// Commander wants child_process for subcommands in programs of their own, of which there are none; loading it costs
// a twentieth of a short command.
const withoutChildProcess = {
  name: 'commander-without-child-process',
  setup(builder) {
    builder.onResolve({ filter: /^node:child_process$/ }, ({ importer }) =>
      importer.includes('commander') ? { path: 'none', namespace: 'none' } : undefined,
    );
    builder.onLoad({ filter: /./, namespace: 'none' }, () => ({ contents: 'module.exports = {}' }));
  },
};

await build({
  absWorkingDir: root,
  entryPoints: ['src/cli/main.ts', ...commands],
  outdir: 'dist/cli',
  outbase: 'src/cli',
  outExtension: { '.js': '.cjs' },
  bundle: true,
  platform: 'node',
  format: 'cjs',
  target: 'node20',
  minify: true,
  legalComments: 'none',
  external: ['fs-ext'],
  define: { 'import.meta.url': 'importMetaUrl' },
  banner: { js: "const importMetaUrl = require('node:url').pathToFileURL(__filename).href;" },
  // import() needs more than a script that is run from compiled code has.
  supported: { 'dynamic-import': false },
  plugins: [withoutChildProcess],
  logLevel: 'warning',
});

await build({
  absWorkingDir: root,
  entryPoints: ['src/cli/load-verb.ts'],
  outfile: '.cache/load-verb.mjs',
  platform: 'node',
  format: 'esm',
  target: 'node20',
});
run(process.execPath, [join(root, '.dev', 'code-cache.mjs')]);
