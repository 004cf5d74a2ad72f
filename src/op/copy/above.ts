import type { Image } from '../../format/image.ts';
import { layerStatus } from '../../format/status.ts';
import type { Run, SourceDisk } from './source.ts';

/** Runs that are given at once. */
const LIST = 512;

/**
 * What the layers of a chain above `base` hold: where none of them says anything the run is `absent`. A layer that ends
 * before the one above it hides with zeroes what lies below its end.
 */
export function aboveSource(top: Image, base: Image): SourceDisk {
  return {
    size: top.size,
    read: (into, at) => top.read(into, at),
    async *runs() {
      let list: Run[] = [];
      for (let at = 0; at < top.size;) {
        const run = await runAbove(top, base, at);
        list.push(run);
        at += run.length;
        if (list.length < LIST) continue;
        yield list;
        list = [];
      }
      yield list;
    },
  };
}

async function runAbove(top: Image, base: Image, at: number): Promise<Run> {
  let length = top.size - at;
  for (let layer = top; ;) {
    const status = await layerStatus(layer, at, Math.min(length, layer.size - at));
    length = status.length;
    if (status.allocated)
      return status.zero
        ? { at, length, kind: 'zero', host: null }
        : { at, length, kind: 'data', host: status.host };
    const { backing } = layer;
    if (backing === base) return { at, length, kind: 'absent', host: null };
    if (backing === null || at >= backing.size) return { at, length, kind: 'zero', host: null };
    layer = backing;
  }
}
