import { fileURLToPath } from 'node:url';
import tseslint from 'typescript-eslint';

const root = fileURLToPath(new URL('..', import.meta.url));

/** In the rooms that work with offsets, the few files whose business are flags and the bits of entries. */
const BITWISE = [
  'src/core/bytes.ts',
  'src/format/qcow2/**',
  'src/format/disk-image.ts',
  'src/format/status.ts',
  'src/format/open.ts',
  'src/format/raw/driver.ts',
  'src/op/allocate/{host,thin}.ts',
  'src/op/info.ts',
  'src/op/open.ts',
];

export default tseslint.config(
  {
    ignores: [
      'dist/**',
      'native/target/**',
      '.cache/**',
      'fixtures/**',
      '.dev/**',
      'node_modules/**',
      '**/*.cjs',
    ],
  },
  ...tseslint.configs.strictTypeChecked,
  {
    languageOptions: { parserOptions: { project: `${root}/tsconfig.json`, tsconfigRootDir: root } },
    linterOptions: { reportUnusedDisableDirectives: 'error' },
    rules: {
      '@typescript-eslint/only-throw-error': 'off',
      '@typescript-eslint/prefer-promise-reject-errors': 'off',
      '@typescript-eslint/no-unused-vars': ['error', { argsIgnorePattern: '^_', varsIgnorePattern: '^_' }],
      '@typescript-eslint/restrict-template-expressions': ['error', { allowNumber: false }],
      '@typescript-eslint/return-await': ['error', 'error-handling-correctness-only'],
      '@typescript-eslint/no-confusing-void-expression': [
        'error',
        { ignoreArrowShorthand: true, ignoreVoidReturningFunctions: true },
      ],
      eqeqeq: 'error',
      'no-console': 'error',
      'no-restricted-syntax': [
        'error',
        { selector: 'TSEnumDeclaration', message: 'erasable syntax only' },
        {
          selector: "BinaryExpression[operator='%'][right.name=/[sS]ize/]",
          message: 'use isAligned or offsetIn',
        },
      ],
    },
  },
  {
    files: ['src/core/**/*.ts', 'src/format/**/*.ts', 'src/op/**/*.ts'],
    ignores: BITWISE,
    rules: { 'no-bitwise': 'error' },
  },
  {
    files: ['test/**/*.ts', 'bench/**/*.ts'],
    rules: {
      'no-console': 'off',
      '@typescript-eslint/no-non-null-assertion': 'off',
      '@typescript-eslint/unbound-method': 'off',
      '@typescript-eslint/no-unnecessary-type-parameters': 'off',
      '@typescript-eslint/no-unsafe-class-instance-assignment': 'off',
      'no-restricted-syntax': 'off',
    },
  },
);
