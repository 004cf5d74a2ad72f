import { SpindleError } from '../core/errors.ts';
import { parseOptionList } from './option-list.ts';

/**
 * The id or name in `snapshot.id=ID`, `snapshot.name=NAME` or the like; anything else is one of the two itself.
 * @throws SpindleError BAD_OPTION
 */
export function snapshotIn(text: string): string {
  if (!text.startsWith('snapshot.')) return text;
  const values = new Map(parseOptionList(text).map(({ name, value }) => [name, value]));
  const found = values.get('snapshot.id') ?? values.get('snapshot.name');
  if (found !== undefined) return found;
  throw new SpindleError(
    'BAD_OPTION',
    `'${text}' names no snapshot: write snapshot.id=ID or snapshot.name=NAME`,
  );
}
