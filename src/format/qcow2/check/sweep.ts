/** A run of bytes that the same spans cover. */
export interface Segment {
  readonly at: number;
  readonly end: number;
  /** Spans that start at or before `at`; in order of their starts, those are the first so many. */
  readonly opened: number;
  /** Spans that end at or before `at`; in order of their ends, those are the first so many. */
  readonly closed: number;
}

/**
 * Cuts overlapping spans into segments, in ascending order, so that each byte is looked at once however many spans
 * cover it. `starts` and `ends` are each sorted ascending; no span is empty.
 */
export function* sweep(starts: Float64Array, ends: Float64Array): Generator<Segment> {
  const count = starts.length;
  let opened = 0;
  let closed = 0;
  while (closed < count) {
    const at = Math.min(starts[opened] ?? Infinity, ends[closed] ?? Infinity);
    while (opened < count && (starts[opened] ?? 0) <= at) opened++;
    while (closed < count && (ends[closed] ?? 0) <= at) closed++;
    if (opened === closed) continue;
    yield { at, end: Math.min(starts[opened] ?? Infinity, ends[closed] ?? Infinity), opened, closed };
  }
}

/** Sorted starts and ends of spans, for {@link sweep}. Empty spans are left out. */
export function sortSpans(spans: readonly { readonly at: number; readonly end: number }[]): {
  starts: Float64Array;
  ends: Float64Array;
} {
  const filled = spans.filter(({ at, end }) => end > at);
  return {
    starts: Float64Array.from(filled, ({ at }) => at).sort(),
    ends: Float64Array.from(filled, ({ end }) => end).sort(),
  };
}
