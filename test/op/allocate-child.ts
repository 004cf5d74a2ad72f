import type { AllocationPolicy } from '../../src/core/allocation.ts';
import { allocate } from '../../src/op/allocate.ts';

/* Takes an image from one policy to the next, again and again, until it is killed. */
const [path = '', format = ''] = process.argv.slice(2);
process.send?.('started');
void (async () => {
  const policies: readonly AllocationPolicy[] = ['thick-lazy', 'thick-eager', 'thin', 'thick-eager', 'thin'];
  for (;;) for (const policy of policies) await allocate(path, { policy, format });
})();
