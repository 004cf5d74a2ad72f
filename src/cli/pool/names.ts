import { Pools } from '../../pool/index.ts';
import type { Param, PoolVerb } from './spec.ts';

/** Milliseconds that another command is waited for. */
const PATIENCE = 300;

/** Which arguments are names of pools, and of volumes; each volume with the arguments that may say its pool. */
const POOL_PARAMS: ReadonlySet<string> = new Set(['pool', 'inputpool']);
const VOLUME_PARAMS: ReadonlySet<string> = new Set(['vol', 'backing-vol']);

/** A word as it was typed, without the quotes and backslashes that a shell takes away. */
function plain(word: string): string {
  return word.replace(/^['"]/, '').replace(/\\(.)/gs, '$1');
}

/**
 * The names of pools or volumes that the word at `index` can become, where `words` are those behind the name of the program,
 * `pool-info` or `pool info` first; null where something else stands there.
 * @throws SpindleError POOL_NOT_FOUND, POOL_INACTIVE, and all that looking at a pool can end with
 */
export async function namesFor(
  verbs: Readonly<Record<string, PoolVerb>>,
  words: readonly string[],
  index: number,
): Promise<string[] | null> {
  const [first = '', second = ''] = words;
  const group = first === 'pool' || first === 'vol';
  const name = group ? [`${first}-${second}`, second].find((one) => Object.hasOwn(verbs, one)) : first;
  const verb = name === undefined || !Object.hasOwn(verbs, name) ? undefined : verbs[name];
  const skipped = group ? 2 : 1;
  if (verb === undefined || !(index >= skipped)) return null;
  const { params } = verb;
  const given = words.slice(skipped).map(plain);
  const at = index - skipped;
  const current = given[at] ?? '';
  const { asked, values } = placesOf(params, given, at);
  if (asked === undefined || current.startsWith('-')) return null;
  const pools = new Pools({ libvirt: given.includes('--libvirt'), patience: PATIENCE });
  const starting = (names: readonly string[]): string[] => names.filter((one) => one.startsWith(current));
  if (POOL_PARAMS.has(asked)) return starting(pools.all().map((pool) => pool.name));
  if (!VOLUME_PARAMS.has(asked)) return null;
  const inside = (asked === 'vol' ? values.get('inputpool') : undefined) ?? values.get('pool');
  // By key or path: those are files.
  if (inside === undefined || current.startsWith('/')) return null;
  return starting((await pools.find(inside).volumes()).map((volume) => volume.name));
}

/** Which argument stands at `at`, and what the others are. */
function placesOf(
  params: readonly Param[],
  given: readonly string[],
  at: number,
): { asked: string | undefined; values: ReadonlyMap<string, string> } {
  const values = new Map<string, string>();
  const loose: number[] = [];
  let asked: string | undefined;
  for (let word = 0; word < given.length; word++) {
    const text = given[word] ?? '';
    const [, name, inline] = /^--([^=]+)(?:=(.*))?$/s.exec(text) ?? [];
    const param = params.find((one) => one.name === name);
    if (param === undefined || param.kind === 'flag') {
      if (!text.startsWith('-') || text === '-') loose.push(word);
      continue;
    }
    if (inline !== undefined) values.set(param.name, inline);
    else if (++word === at) asked = param.name;
    else values.set(param.name, given[word] ?? '');
  }
  const places = params.filter(
    ({ name, kind, place }) => kind !== 'flag' && place !== 'named' && !values.has(name) && name !== asked,
  );
  loose.forEach((word, place) => {
    const name = places[place]?.name;
    if (word === at) asked = name;
    else if (name !== undefined) values.set(name, given[word] ?? '');
  });
  return { asked, values };
}
