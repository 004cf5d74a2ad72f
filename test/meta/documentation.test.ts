import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import ts from 'typescript';
import { describe, expect, it } from 'vitest';

const ROOT = fileURLToPath(new URL('../../', import.meta.url));

const config = ts.parseJsonConfigFileContent(
  ts.readConfigFile(join(ROOT, 'tsconfig.json'), (path) => readFileSync(path, 'utf8')).config,
  ts.sys,
  ROOT,
);
const program = ts.createProgram(
  config.fileNames.filter((name) => name.includes('/src/')),
  config.options,
);
const checker = program.getTypeChecker();
const sources = program.getSourceFiles().filter((file) => file.fileName.startsWith(join(ROOT, 'src')));

function exportsOf(file: ts.SourceFile): ts.Symbol[] {
  const module = checker.getSymbolAtLocation(file);
  return module === undefined ? [] : checker.getExportsOfModule(module);
}

function resolved(symbol: ts.Symbol): ts.Symbol {
  return (symbol.flags & ts.SymbolFlags.Alias) !== 0 ? checker.getAliasedSymbol(symbol) : symbol;
}

/** Whether a symbol has a docblock: words, or a tag that says something. */
function documented(symbol: ts.Symbol): boolean {
  const target = resolved(symbol);
  if (target.getDocumentationComment(checker).length > 0) return true;
  if (target.getJsDocTags(checker).some(({ text }) => text !== undefined && text.length > 0)) return true;
  // Names that are taken out of a value share the docblock of their statement.
  return (target.declarations ?? []).some((declaration) => {
    let node: ts.Node = declaration;
    while (ts.isBindingElement(node) || ts.isObjectBindingPattern(node) || ts.isVariableDeclaration(node))
      node = node.parent;
    return ts.isVariableDeclarationList(node) && ts.getJSDocCommentsAndTags(node.parent).length > 0;
  });
}

describe('documentation', () => {
  it('every export of every file has a docblock', () => {
    const missing = sources.flatMap((file) =>
      exportsOf(file)
        .filter((symbol) => !documented(symbol))
        .map((symbol) => `${file.fileName.slice(ROOT.length)}: ${symbol.name}`),
    );
    expect(sources.length).toBeGreaterThan(30);
    expect(missing).toEqual([]);
  });

  it('every public method of an exported class has a docblock, its own or that of what it implements', () => {
    const index = sources.find((file) => file.fileName === join(ROOT, 'src', 'index.ts'));
    const missing = (index === undefined ? [] : exportsOf(index)).flatMap((symbol) => {
      const target = resolved(symbol);
      if ((target.flags & ts.SymbolFlags.Class) === 0) return [];
      const type = checker.getDeclaredTypeOfSymbol(target);
      const inherited = new Set(
        (target.declarations ?? [])
          .filter(ts.isClassDeclaration)
          .flatMap((declaration) => declaration.heritageClauses ?? [])
          .flatMap((clause) => clause.types)
          .flatMap((base) =>
            checker.getPropertiesOfType(checker.getTypeAtLocation(base)).map(({ name }) => name),
          ),
      );
      return checker
        .getPropertiesOfType(type)
        .filter((member) => (member.flags & ts.SymbolFlags.Method) !== 0 && !member.name.includes('#'))
        .filter(
          (member) => !inherited.has(member.name) && member.getDocumentationComment(checker).length === 0,
        )
        .map((member) => `${symbol.name}.${member.name}`);
    });
    expect(index).toBeDefined();
    expect(missing).toEqual([]);
  });
});
