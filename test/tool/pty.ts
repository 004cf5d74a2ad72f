/** Programs on a terminal of their own: what shows there, and the state in which they leave it. */
import { spawn, spawnSync } from 'node:child_process';

/** What happened on the terminal. */
export interface OnTerminal {
  /** All that was shown. */
  readonly shown: string;
  readonly code: number;
  /** Whether the terminal showed what is typed while the program waited for the first answer, and after its end. */
  readonly echo: { readonly waiting: boolean; readonly after: boolean };
}

/** Waits for each text to be shown, and types the answer to it. The terminal stays open until the program has ended. */
const DRIVER = `
import fcntl, json, os, pty, select, subprocess, sys, termios, time
steps, args = json.loads(sys.argv[1]), json.loads(sys.argv[2])
master, slave = pty.openpty()
def session():
    os.setsid()
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
child = subprocess.Popen(args, stdin=slave, stdout=slave, stderr=slave, preexec_fn=session)
echo = lambda: bool(termios.tcgetattr(slave)[3] & termios.ECHO)
shown, seen, waiting, deadline = b'', 0, True, time.time() + 30
def drain(seconds):
    global shown
    if select.select([master], [], [], seconds)[0]: shown += os.read(master, 65536)
for number, (question, answer) in enumerate(steps):
    while question.encode() not in shown[seen:]:
        drain(0.05)
        if time.time() > deadline or (child.poll() is not None and not select.select([master], [], [], 0)[0]):
            child.kill()
            sys.exit('never asked: ' + question + '\\nshown: ' + shown.decode('utf8', 'replace'))
    at = shown.find(question.encode(), seen)
    seen = seen if at < 0 else at + len(question.encode())
    if number == 0: waiting = echo()
    os.write(master, answer.encode('latin1'))
while child.poll() is None and time.time() < deadline: drain(0.05)
if child.poll() is None: child.kill()
while select.select([master], [], [], 0)[0]: drain(0)
code = child.wait()
print(json.dumps({'shown': shown.decode('utf8', 'replace'), 'code': code, 'echo': {'waiting': waiting, 'after': echo()}}))
`;

/** Why there is no terminal for tests, or undefined. */
export function ptyMissing(): string | undefined {
  const { status } = spawnSync('python3', ['-c', 'import pty, termios, fcntl']);
  return status === 0 ? undefined : 'python3 with its module pty';
}

/** Runs a program on a terminal; `steps` are what it shows and what is typed then. */
export function onTerminal(
  command: readonly string[],
  steps: readonly (readonly [shows: string, type: string])[],
  cwd: string,
): Promise<OnTerminal> {
  return new Promise((resolve, reject) => {
    const child = spawn('python3', ['-c', DRIVER, JSON.stringify(steps), JSON.stringify(command)], {
      cwd,
      stdio: ['ignore', 'pipe', 'inherit'],
    });
    let text = '';
    child.stdout.setEncoding('utf8').on('data', (part: string) => (text += part));
    child.on('error', reject);
    child.on('close', (code) => {
      if (code === 0) resolve(JSON.parse(text) as OnTerminal);
      else reject(new Error(`the terminal: exit ${String(code)}`));
    });
  });
}
