import { describe, expect, it } from 'vitest';
import type { Cell, StepResult } from '../../src/benchmark/cell.ts';
import { compareStudies, parseStudy } from '../../src/benchmark/compare.ts';
import { planOf, type Plan } from '../../src/benchmark/plan.ts';
import { latencyOf } from '../../src/benchmark/statistics.ts';
import type { Study } from '../../src/benchmark/study.ts';
import { conclude, type Comparison, type Conclusion } from '../../src/benchmark/verdict.ts';
import { chartsOf } from '../../src/report/study.ts';

const MIB = 1024 ** 2;

/** Seconds that an image takes. */
interface Takes {
  readonly created: number;
  readonly first: number;
  readonly rewrite: number;
}

/** A figure that goes up and down with the rounds as much as those of a store do, within two per cent. */
function about(value: number, round: number): number {
  return value * (1 + 0.01 * Math.sin(round * 2.4));
}

function step(name: 'first' | 'rewrite', seconds: number, bytes: number, requests: number): StepResult {
  return {
    ...{ step: name, engine: 'threads', requests, bytes: bytes * requests, seconds: seconds * requests },
    ...{ latency: latencyOf(Array.from({ length: requests }, () => seconds * 1e9)), histogram: [[1, 1]] },
    ...{ series: [1], cpu: 0, processBytes: 0, deviceBytes: 0 },
  };
}

const PLAN = planOf({
  ...{ size: 16 * MIB, seed: 3, subjects: ['raw-thin', 'raw-thick-eager'], scenarios: ['random-sync'] },
});

function cellsOf(
  plan: Plan,
  takes: (subject: string, round: number) => Takes,
  bytes = 4096,
  requests = 128,
): Cell[] {
  return Array.from({ length: plan.rounds }, (_, round) =>
    plan.subjects.flatMap(({ id }) =>
      plan.scenarios.map((scenario): Cell => {
        const { created, first, rewrite } = takes(id, round);
        return {
          ...{ round, subject: id, scenario: scenario.id, void: null, created: about(created, round) },
          ...{ quiet: null, createdBytes: null, before: null, after: null },
          steps: [
            step('first', about(first, round + 1), bytes, requests),
            step('rewrite', about(rewrite, round + 2), bytes, requests),
          ],
        };
      }),
    ),
  ).flat();
}

const THIN = { created: 0.01, first: 0.002, rewrite: 0.001 };
const EAGER = { created: 1, first: 0.001, rewrite: 0.001 };

/** Thin allocates at its first writes, and eager at its creation. */
function usual(subject: string): Takes {
  return subject === 'raw-thick-eager' ? EAGER : THIN;
}

function seconds({ comparisons }: Conclusion): Comparison | undefined {
  return comparisons.find(({ measure, step: name }) => measure === 'seconds' && name === 'first');
}

describe('a verdict', () => {
  it('says what is slower, and after how many first writes creation is paid for', () => {
    const found = conclude(PLAN, cellsOf(PLAN, usual), null);
    expect(found.verdict[0]?.given).toBe(true);
    expect(seconds(found)).toMatchObject({ of: 'raw-thick-eager', finding: 'faster' });
    expect(
      found.firstWrites.filter(({ measure }) => measure === 'seconds').map((one) => one.finding),
    ).toEqual(['slower', 'same']);
    const [crossover] = found.crossovers;
    expect(crossover?.writes).toBeGreaterThan(900);
    expect(crossover?.writes).toBeLessThan(1100);
    expect(found.verdict[0]?.lines.join('\n')).toMatch(
      /raw-thick-eager has paid for its creation after \d+ first writes/,
    );
  });

  it('says that creation is never paid for where the disk has fewer first writes than that takes', () => {
    const dear = cellsOf(PLAN, (subject) => ({
      ...usual(subject),
      ...(subject === 'raw-thick-eager' && { created: 10 }),
    }));
    const found = conclude(PLAN, dear, null);
    expect(found.crossovers[0]).toMatchObject({ bytes: 4096, most: 4096 });
    expect(found.crossovers[0]?.writes).toBeGreaterThan(4096);
    expect(found.verdict[0]?.lines.join('\n')).toMatch(
      /never pays for its creation: that takes \d+ first writes, and the disk has 4096/,
    );
    const large = conclude(PLAN, cellsOf(PLAN, usual, MIB), null);
    expect(large.crossovers[0]?.most).toBe(16);
  });

  it('says nothing of paying where the control strays, though less than would take all of the verdict', () => {
    const strays = cellsOf(PLAN, (subject, round) => ({
      ...usual(subject),
      ...(subject === 'raw-control' && { first: THIN.first * (round === 0 ? 1.06 : 1.3) }),
    }));
    const found = conclude(PLAN, strays, null);
    expect(found.verdict[0]?.given).toBe(true);
    expect(seconds(found)).toMatchObject({ finding: 'none', why: 'the control differs from itself' });
    expect(found.crossovers[0]).toMatchObject({ writes: null, why: 'the control differs from itself' });
    expect(found.verdict[0]?.lines.join('\n')).not.toMatch(/paid|pays/);
  });

  it('finds no effect that is no larger than what the control shows', () => {
    // In one round of seven the control went the other way: it is not said to differ, but nor is it steady.
    const unsteady = cellsOf(PLAN, (subject, round) => ({
      ...{ ...THIN },
      ...(subject === 'raw-control' && { first: THIN.first * (round === 3 ? 0.9 : 1.4) }),
      ...(subject === 'raw-thick-eager' && { first: THIN.first * 1.25 }),
    }));
    const found = conclude(PLAN, unsteady, null);
    expect(
      found.controls.find(({ step: name, measure }) => name === 'first' && measure === 'seconds')?.finding,
    ).toBe('undecided');
    expect(seconds(found)).toMatchObject({
      finding: 'undecided',
      why: expect.stringMatching(/^the control shows as much/) as string,
    });
    expect(found.verdict[0]?.lines.join('\n')).toMatch(/the control shows as much/);
  });

  it('leaves no finding behind where it is not given, whatever was measured', () => {
    const jumped = conclude(PLAN, cellsOf(PLAN, usual), 'the clock jumped by 9 ms');
    const noisy = conclude(
      PLAN,
      cellsOf(PLAN, (subject) => ({ ...usual(subject), ...(subject === 'raw-control' && { created: 1 }) })),
      null,
    );
    const spoiled = cellsOf(PLAN, usual).map((cell, at) => (at === 4 ? { ...cell, void: 'spoiled' } : cell));
    for (const found of [jumped, noisy, conclude(PLAN, spoiled, null)]) {
      expect(found.verdict.map(({ given }) => given)).toEqual([false]);
      for (const { finding, why } of [...found.comparisons, ...found.firstWrites]) {
        expect(finding).toBe('none');
        expect(why).toMatch(/./);
      }
      expect(found.crossovers.map(({ writes }) => writes)).toEqual([null]);
    }
  });

  it('compares no images that did unequal work, whose extents and times would differ for that alone', () => {
    const cut = cellsOf(PLAN, usual).map((cell) =>
      cell.subject === 'raw-thick-eager' && cell.round === 5
        ? { ...cell, steps: cell.steps.map((one) => ({ ...one, requests: 90 })) }
        : cell,
    );
    const found = conclude(PLAN, cut, null);
    const about = found.comparisons.filter(({ measure }) => measure !== 'created');
    expect(about.map(({ measure }) => measure)).toContain('extents');
    for (const { finding, why } of about)
      expect([finding, why]).toEqual(['none', expect.stringMatching(/^in \d of 7 rounds /)]);
    expect(seconds(found)?.why).toBe('in 1 of 7 rounds not all images had the time for the same requests');
    expect(found.crossovers[0]?.writes).toBeNull();
    // Beside its own rewrites, which were as many, its first writes are what they were.
    expect(found.firstWrites.map(({ finding }) => finding)).not.toContain('none');
  });

  it('tells no tail of which there are too few requests', () => {
    const tail = (requests: number): (readonly [string, string | undefined])[] =>
      conclude(PLAN, cellsOf(PLAN, usual, 4096, requests), null)
        .comparisons.filter(({ measure, step: name }) => measure === 'p99' && name === 'first')
        .map(({ finding, why }) => [finding, why]);
    expect(tail(64)).toEqual([['none', 'p99 needs 100 requests a round']]);
    expect(tail(100)).toEqual([['faster', undefined]]);
  });

  it('of one format does not depend on the other', () => {
    const plan = planOf({
      size: 16 * MIB,
      seed: 3,
      subjects: ['raw-thin', 'qcow2-thin', 'qcow2-thick-eager'],
      scenarios: ['random-sync'],
    });
    const cells = cellsOf(plan, (subject) => (subject === 'qcow2-thick-eager' ? EAGER : THIN)).map((cell) =>
      cell.subject === 'raw-control' && cell.round === 1 ? { ...cell, void: 'spoiled' } : cell,
    );
    const found = conclude(plan, cells, null);
    expect(found.verdict.map(({ format, given }) => [format, given])).toEqual([
      ['raw', false],
      ['qcow2', true],
    ]);
    expect(seconds(found)).toMatchObject({ of: 'qcow2-thick-eager', finding: 'faster' });
  });
});

function studyOf(cells: readonly Cell[], jumped: string | null = null): Study {
  const environment = { kernel: 'k', fileSystem: 'ext4', mountOptions: [], queue: {} };
  return {
    plan: PLAN,
    cells,
    reduced: [],
    conclusion: conclude(PLAN, cells, jumped),
    environment,
  } as unknown as Study;
}

describe('two studies side by side', () => {
  const slow = studyOf(cellsOf(PLAN, (subject) => ({ ...usual(subject), rewrite: 0.002 })));
  const fast = studyOf(cellsOf(PLAN, usual));
  const found = (a: Study, b: Study): string[] => [
    ...new Set(
      compareStudies(a, b).flatMap(({ step: name, finding }) => (name === 'rewrite' ? finding : [])),
    ),
  ];

  it('tell what became slower', () => {
    expect(found(fast, slow)).toEqual(['slower']);
    expect(found(slow, fast)).toEqual(['faster']);
    expect(found(fast, fast)).toEqual(['same']);
  });

  it('find nothing where either gave no verdict, or its control strayed', () => {
    const none = studyOf(fast.cells, 'the clock jumped by 9 ms');
    for (const [a, b] of [
      [none, slow],
      [slow, none],
    ] as const)
      for (const { finding, why } of compareStudies(a, b))
        expect([finding, why]).toEqual(['none', 'no verdict was given']);
    const strays = studyOf(
      cellsOf(PLAN, (subject, round) => ({
        ...usual(subject),
        ...(subject === 'raw-control' && { rewrite: round === 0 ? 0.00106 : 0.0013 }),
      })),
    );
    expect(found(strays, slow)).toEqual(['none']);
    expect(
      compareStudies(strays, slow)
        .filter(({ step: name }) => name === 'first')
        .map(({ finding }) => finding),
    ).not.toContain('none');
  });

  it('are refused in one line where they are none', () => {
    for (const text of [
      '{}',
      'null',
      '[]',
      '"x"',
      JSON.stringify({ kind: 'spindle bench allocation', version: 1, cells: [] }),
    ])
      expect(() => parseStudy(text, 'x.json')).toThrow(
        expect.objectContaining({ code: 'UNKNOWN_FORMAT' }) as Error,
      );
    const whole = JSON.stringify({ ...fast, kind: 'spindle bench allocation', version: 1 });
    expect(compareStudies(parseStudy(whole, 'x.json'), fast)).not.toEqual([]);
  });
});

describe('the chart of costs', () => {
  it('adds up as many first writes as the disk takes of their size', () => {
    const widths = (bytes: number): number[] => {
      const [chart] = chartsOf(studyOf(cellsOf(PLAN, usual, bytes))).filter(
        ({ name }) => name === 'raw-cost',
      );
      return [...(chart?.svg ?? '').matchAll(/<rect class="(?:fill|pale)"[^>]* width="([\d.]+)"/g)].map(
        ([, width]) => Number(width),
      );
    };
    // Creation costs 0.99 s. 256 writes of 4 KiB, one in each 64 KiB, save 0.256 s, and 16 of 1 MiB 0.016 s.
    const [small, large] = [widths(4096), widths(MIB)];
    expect((small[1] ?? 0) / (small[0] ?? 1)).toBeCloseTo(0.256 / 0.99, 1);
    expect((large[1] ?? 0) / (large[0] ?? 1)).toBeCloseTo(0.016 / 0.99, 2);
  });
});
