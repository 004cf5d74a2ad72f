import { convert } from '../../src/op/convert.ts';

/* Converts the first argument to the second, again and again, until it is killed. Tells when it starts. */
const [from = '', to = ''] = process.argv.slice(2);
process.send?.('started');
void (async () => {
  for (;;) await convert([{ path: from, format: 'raw' }], { path: to, format: 'qcow2' });
})();
