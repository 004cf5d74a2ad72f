import { commit } from '../../src/op/commit.ts';
import { rebase } from '../../src/op/rebase.ts';

/* Commits an image, or puts it on one of several backing files after the other, until it is killed. */
const [verb = '', path = '', ...names] = process.argv.slice(2);
process.send?.('started');
void (async () => {
  if (verb === 'commit') await commit(path);
  else {
    for (;;) {
      for (const name of names) {
        await rebase(path, name === '' ? null : { name, format: 'raw' });
        process.send?.('switched');
      }
    }
  }
  process.send?.('ended');
})();
