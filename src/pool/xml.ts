import { closeSync, constants, openSync, readSync } from 'node:fs';
import { DOMImplementation, DOMParser, XMLSerializer, type Document, type Element } from '@xmldom/xmldom';
import { SpindleError } from '../core/errors.ts';

/** An element: its local name, and the namespace it is in where it is in one. */
export interface Xml {
  readonly name: string;
  readonly namespace: string | null;
  readonly attributes: Readonly<Record<string, string>>;
  /** Child elements, in order. */
  readonly children: readonly Xml[];
  /** The text directly in it, without blanks around it. */
  readonly text: string;
}

/** The most bytes, elements and depth of a description: hundreds of times what any real one has. */
const LIMIT = { bytes: 256 * 1024, elements: 10_000, depth: 32 };

/**
 * The text of the file at `path`, of which no more is read than any description may have.
 * @throws SpindleError BAD_XML (too long), and what the file system throws
 */
export function readText(path: string): string {
  const fd = openSync(path, constants.O_RDONLY | constants.O_NOCTTY);
  try {
    const bytes = Buffer.alloc(LIMIT.bytes + 1);
    let length = 0;
    for (let got = -1; got !== 0 && length < bytes.length; length += got)
      got = readSync(fd, bytes, length, bytes.length - length, null);
    if (length <= LIMIT.bytes) return bytes.toString('utf8', 0, length);
    throw new SpindleError('BAD_XML', `${path}: longer than ${String(LIMIT.bytes)} bytes`);
  } finally {
    closeSync(fd);
  }
}

/**
 * Parses a description. No document type is taken, and so no entity but the five of XML itself: nothing is fetched, and
 * nothing expands.
 * @throws SpindleError BAD_XML; `what` names the description in the message
 */
export function parseXml(text: string, what: string): Xml {
  const bad = (why: string, cause?: unknown): SpindleError =>
    new SpindleError('BAD_XML', `${what}: ${why}`, { cause });
  if (text.length > LIMIT.bytes) throw bad(`longer than ${String(LIMIT.bytes)} characters`);
  if (/<!DOCTYPE/i.test(text.replace(/<!--[\s\S]*?-->/g, '')))
    throw bad('a document type is not taken, nor are the entities that it could declare');
  if (deepest(text) > LIMIT.depth) throw bad(`elements lie more than ${String(LIMIT.depth)} deep`);
  let document: Document;
  try {
    const onError = (level: string, message: string): void => {
      // A character like any other, though it often stands for one that was lost.
      if (level === 'warning' && message.includes('replacement character')) return;
      throw new Error(message);
    };
    document = new DOMParser({ onError }).parseFromString(text, 'text/xml');
  } catch (error) {
    const why = error instanceof Error ? (error.message.split('\n')[0] ?? '') : '';
    throw bad(`not well-formed XML: ${why}`, error);
  }
  const root = document.documentElement;
  if (root === null) throw bad('no XML: there is no element in it');
  let left = LIMIT.elements;
  const read = (element: Element): Xml => {
    if (--left < 0) throw bad(`more than ${String(LIMIT.elements)} elements`);
    const children: Xml[] = [];
    let own = '';
    for (let node = element.firstChild; node !== null; node = node.nextSibling) {
      if (node.nodeType === node.ELEMENT_NODE) children.push(read(node as Element));
      else if (node.nodeType === node.TEXT_NODE || node.nodeType === node.CDATA_SECTION_NODE)
        own += node.nodeValue ?? '';
    }
    const attributes = Object.fromEntries(
      Array.from(element.attributes, ({ name, value }) => [name, value] as const),
    );
    return {
      name: element.localName ?? element.tagName,
      namespace: element.namespaceURI,
      attributes,
      children,
      text: own.trim(),
    };
  };
  return read(root);
}

/** How deep elements lie at most, told without building them. */
function deepest(text: string): number {
  let depth = 0;
  let most = 0;
  for (const [tag] of text.replace(/<!--[\s\S]*?-->/g, '').matchAll(/<[^<>?!][^<>]*>/g)) {
    if (tag.startsWith('</')) depth--;
    else if (!tag.endsWith('/>')) most = Math.max(most, ++depth);
  }
  return most;
}

/** The first child of that name. */
export function childOf(element: Xml | undefined, name: string): Xml | undefined {
  return element?.children.find((child) => child.name === name);
}

/** The children of that name. */
export function childrenOf(element: Xml | undefined, name: string): Xml[] {
  return element?.children.filter((child) => child.name === name) ?? [];
}

/** The text of the first child of that name; undefined where there is none, or it is empty. */
export function textOf(element: Xml | undefined, name: string): string | undefined {
  const text = childOf(element, name)?.text;
  return text === '' ? undefined : text;
}

/** What an element is built of: text, or further elements; undefined ones are left out. */
export interface Built {
  readonly name: string;
  readonly attributes: Readonly<Record<string, string | undefined>>;
  readonly content: string | readonly (Built | undefined)[];
}

/** An element to be written by {@link writeXml}. */
export function element(
  name: string,
  attributes: Readonly<Record<string, string | undefined>> = {},
  content: string | readonly (Built | undefined)[] = [],
): Built {
  return { name, attributes, content };
}

/** `<name>text</name>`; undefined where there is no text. */
export function textElement(name: string, text: string | number | undefined): Built | undefined {
  return text === undefined ? undefined : element(name, {}, String(text));
}

/** Text as XML can hold it: names inside hostile images may have what no document may. */
function legible(text: string): string {
  return text.replace(/[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\u{10000}-\u{10ffff}]/gu, '\ufffd');
}

/** The document as text, one element a line, ending with a line break. */
export function writeXml(root: Built): string {
  const document = new DOMImplementation().createDocument(null, '', null);
  const add = (built: Built, depth: number): Element => {
    const made = document.createElement(built.name);
    for (const [name, value] of Object.entries(built.attributes))
      if (value !== undefined) made.setAttribute(name, legible(value));
    if (typeof built.content === 'string') {
      if (built.content !== '') made.appendChild(document.createTextNode(legible(built.content)));
      return made;
    }
    const children = built.content.filter((child) => child !== undefined);
    for (const child of children) {
      made.appendChild(document.createTextNode(`\n${'  '.repeat(depth + 1)}`));
      made.appendChild(add(child, depth + 1));
    }
    if (children.length > 0) made.appendChild(document.createTextNode(`\n${'  '.repeat(depth)}`));
    return made;
  };
  return `${new XMLSerializer().serializeToString(add(root, 0))}\n`;
}
