// The unit that `pool-autostart --unit` prints, as systemd takes it.
import { spawnSync } from 'node:child_process';
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect, it } from 'vitest';
import { UNIT } from '../../src/cli/pool/unit.ts';
import { describeUnlessMissing } from '../tool/qemu.ts';
import { tempDir } from '../tool/temp.ts';

/** What systemd says of a unit. */
function judged(text: string): { status: number | null; said: string } {
  const path = join(tempDir(), 'spindle-pools.service');
  writeFileSync(path, text);
  const { status, stdout, stderr } = spawnSync('systemd-analyze', ['verify', path], {
    encoding: 'utf8',
    env: { ...process.env, SYSTEMD_COLORS: '0' },
  });
  return { status, said: stdout + stderr };
}

const missing =
  spawnSync('systemd-analyze', ['--version']).status === 0 ? undefined : 'systemd-analyze, of systemd';

describeUnlessMissing('the unit for systemd, judged by systemd-analyze verify', missing, () => {
  it('has nothing that systemd does not know', () => {
    expect(judged(UNIT)).toEqual({ status: 0, said: '' });
  });

  it('would be found out if it had', () => {
    expect(judged(UNIT.replace('Type=oneshot', 'Type=onceshot')).said).toMatch(/service type/);
    expect(judged(UNIT.replace('/usr/bin/env', '/nowhere/env'))).toMatchObject({ status: 1 });
    expect(judged(UNIT.replace('[Service]', '[Servce]')).said).not.toBe('');
  });
});
