// Tools of the administrator: what must not be told of how they were run.
import { inspect } from 'node:util';
import { describe, expect, it } from 'vitest';
import { runTool } from '../../src/storage/tool.ts';

describe('a secret among the arguments of a tool', () => {
  it.each([
    ['that fails', 'stat', 'TOOL_FAILED'],
    ['that is not here', 'no-such-program-of-spindle', 'TOOL_MISSING'],
  ])('%s is nowhere in the error', async (_, program, code) => {
    const secret = 'verysecret1234';
    const error: unknown = await runTool(program, ['--', `/nowhere/${secret}`], { hide: secret }).catch(
      (caught: unknown) => caught,
    );
    expect(error).toMatchObject({ code });
    expect(inspect(error, { depth: 10, showHidden: true })).not.toContain(secret);
  });
});
