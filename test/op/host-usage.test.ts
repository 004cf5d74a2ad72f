import fc from 'fast-check';
import { expect, it } from 'vitest';
import type { HostExtent } from '../../src/core/extent.ts';
import type { Image } from '../../src/format/image.ts';
import { hostRuns } from '../../src/op/host-usage.ts';
import { seedOf } from '../tool/random.ts';

const seed = seedOf('host usage');
const UNIT = 4096;

/** An image whose units lie at these units of its file, in any order; the file has these extents. */
function image(places: readonly number[], extents: readonly HostExtent[], size: number): Image {
  const hostExtents = (at: number, length: number): Promise<HostExtent[]> =>
    Promise.resolve(extents.filter((one) => one.offset < at + length && one.offset + one.length > at));
  const map = (at: number): unknown => ({ kind: 'data', at: (places[at / UNIT] ?? 0) * UNIT, length: UNIT });
  return { driver: { map, data: { size: size * UNIT, hostExtents } } } as unknown as Image;
}

async function kindsOf(of: Image, count: number): Promise<string[]> {
  const kinds: string[] = [];
  for await (const { kind, length } of hostRuns(of, 0, count * UNIT) ?? [])
    for (let at = 0; at < length; at += UNIT) kinds.push(kind);
  return kinds;
}

it('a place before one that lies behind all extents of the file is what it is, not a hole', async () => {
  const written = { offset: 0, length: UNIT, kind: 'written', shared: false } as const;
  expect(await kindsOf(image([0, 7, 0], [written], 8), 3)).toEqual(['written', 'hole', 'written']);
});

it(`every place has the kind of its extent, whatever their order (SPINDLE_SEED=${String(seed)})`, async () => {
  const kinds = fc.constantFrom('written', 'unwritten', 'delayed', 'hole', 'hole', 'hole');
  await fc.assert(
    fc.asyncProperty(
      fc.array(kinds, { minLength: 1, maxLength: 12 }),
      fc.array(fc.nat(13), { minLength: 1, maxLength: 40 }),
      async (file, places) => {
        const extents = file.flatMap((kind, at): HostExtent[] =>
          kind === 'hole' ? [] : [{ offset: at * UNIT, length: UNIT, kind, shared: false }],
        );
        const found = await kindsOf(image(places, extents, file.length), places.length);
        expect(found).toEqual(places.map((place) => file[place] ?? 'hole'));
      },
    ),
    { seed },
  );
});
