import { readFileSync } from 'node:fs';
import { compareStudies, conditions, parseStudy } from '../../benchmark/compare.ts';
import { SpindleError } from '../../core/errors.ts';
import { newCommand, outputOption, verb } from '../command-line.ts';
import { out } from '../output.ts';
import { differenceText } from '../study-text.ts';

/** The command line of `bench compare`. */
export const { define, run } = verb((program) =>
  newCommand(
    program,
    'bench compare',
    'Put two studies of bench allocation side by side: what became slower or faster, beyond chance.',
    [
      ['before.json after.json', 'what a change of the store did; says first what differs in the conditions'],
      ['--output json ssd.json disk.json', 'two stores, for a script'],
    ],
  )
    .argument('<A>', 'JSON of the first study')
    .argument('<B>', 'JSON of the second')
    .addOption(outputOption())
    .action((first: string, second: string, { output }: { readonly output: 'human' | 'json' }) => {
      const [a, b] = [load(first), load(second)];
      const answer = { differs: conditions(a, b), figures: compareStudies(a, b) };
      out(
        output === 'json'
          ? `${JSON.stringify(answer, null, 4)}\n`
          : differenceText(answer.differs, answer.figures),
      );
    }),
);

function load(path: string): ReturnType<typeof parseStudy> {
  let text: string;
  try {
    text = readFileSync(path, 'utf8');
  } catch (cause) {
    throw new SpindleError('NOT_FOUND', 'the file cannot be read', { path, cause });
  }
  return parseStudy(text, path);
}
