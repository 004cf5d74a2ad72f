import { SpindleError } from '../core/errors.ts';

/** One element of an option list: `name=value`, or a bare `name`. */
export interface Listed {
  readonly name: string;
  /** Undefined for a bare name. */
  readonly value: string | undefined;
}

/**
 * Splits an option list as qemu-img does: elements are separated by commas, `,,` is a comma inside an element.
 * @throws SpindleError BAD_OPTION for an empty list or element
 */
export function parseOptionList(list: string): Listed[] {
  const empty = (): SpindleError =>
    new SpindleError(
      'BAD_OPTION',
      `the option list '${list}' has an empty element; write name=value,name=value and double a comma inside a value`,
    );
  // A comma in front could belong to nothing before it.
  if (list.startsWith(',')) throw empty();
  const elements: string[] = [];
  let element = '';
  for (let at = 0; at < list.length; at++) {
    const character = list[at] ?? '';
    if (character === ',' && list[at + 1] !== ',') {
      elements.push(element);
      element = '';
      continue;
    }
    element += character;
    if (character === ',') at++;
  }
  elements.push(element);
  return elements.map((text) => {
    if (text === '') throw empty();
    const equals = text.indexOf('=');
    if (equals === 0) throw new SpindleError('BAD_OPTION', `'${text}' has no name in front of the '='`);
    return equals < 0
      ? { name: text, value: undefined }
      : { name: text.slice(0, equals), value: text.slice(equals + 1) };
  });
}

/** `value` as it stands in an option list. */
export function listed(value: string): string {
  return value.replaceAll(',', ',,');
}
