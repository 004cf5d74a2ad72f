import { readFileSync } from 'node:fs';
import { describe, expect, it } from 'vitest';
import { otherSpellings } from '../../src/cli/expand.ts';
import { definitions, reference, REFERENCE } from '../tool/commands.ts';

describe('the reference of commands', () => {
  const written = readFileSync(REFERENCE, 'utf8');

  it('is what the definitions say (npm run docs mends it)', async () => {
    expect(written).toBe(await reference());
  });

  it('has every option of every command, by all its names', async () => {
    let options = 0;
    for (const [name, command] of await definitions()) {
      const [, section = ''] = written.split(`\n## spindle ${name}\n`);
      const [own = ''] = section.split('\n## ');
      for (const option of command.options.filter(({ hidden }) => !hidden)) {
        options++;
        for (const spelling of [option.short, option.long, ...otherSpellings(option)])
          if (spelling !== undefined) expect(own, `${name} ${spelling}`).toContain(spelling);
        expect(option.description, `${name} ${option.flags}`).not.toBe('');
      }
    }
    expect(options).toBeGreaterThan(150);
  });
});
