/**
 * A small part of a list of steps that still fails: steps are left out, in ever smaller groups, as long as what is left
 * fails. `fails` is asked at most `tries` times; it must not mind steps that are no longer possible.
 */
export async function shrink<T>(
  steps: readonly T[],
  fails: (steps: readonly T[]) => Promise<boolean>,
  tries = 300,
): Promise<readonly T[]> {
  let left = steps;
  let asked = 0;
  const without = async (from: number, to: number): Promise<boolean> => {
    asked++;
    const fewer = [...left.slice(0, from), ...left.slice(to)];
    if (!(await fails(fewer))) return false;
    left = fewer;
    return true;
  };
  for (let group = Math.ceil(left.length / 2); group >= 1; group = group === 1 ? 0 : Math.ceil(group / 2)) {
    // From the end: what comes after the failure goes first.
    for (let removed = true; removed && group <= left.length;) {
      removed = false;
      for (let to = left.length; to > 0 && asked < tries; to -= group) {
        if (await without(Math.max(0, to - group), to)) removed = true;
      }
      if (group > 1) break;
    }
  }
  return left;
}

/** Whether something fails. */
export async function failing(work: () => Promise<unknown>): Promise<boolean> {
  try {
    await work();
    return false;
  } catch {
    return true;
  }
}

/** An error that tells all that is needed to see a failure again. */
export function minimalCase(
  what: string,
  seed: number,
  steps: readonly unknown[],
  all: number,
  cause: unknown,
): Error {
  const list = steps.map((step) => `\n  ${JSON.stringify(step)}`).join('');
  return new Error(
    `${what} (SPINDLE_SEED=${String(seed)}): ${String(cause)}\nminimal case, ${String(steps.length)} of ${String(all)} steps:${list}`,
    { cause },
  );
}
