/** Text as it may stand in HTML and SVG. */
export function escaped(text: string): string {
  return text.replace(/[&<>"']/g, (char) => `&#${String(char.codePointAt(0))};`);
}

/** Width of every chart in its own units: what a narrow screen shows without making letters smaller. */
export const WIDTH = 360;

/** The margins around what is drawn. */
export const MARGIN = { top: 44, right: 14, bottom: 40, left: 96 } as const;

/** A chart: a title, what is drawn, and what it says to those who cannot see it. */
export interface Chart {
  readonly name: string;
  readonly svg: string;
}

/** Colours by the kind of policy: told apart by those who see colours differently, on light and on dark. */
const STYLE = `text{font:11px system-ui,sans-serif;fill:var(--ink,#1f2328)}
.title{font-weight:600;font-size:12.5px}.quiet{fill:var(--quiet,#59636e)}
.axis{stroke:var(--line,#d1d9e0);stroke-width:1}
.thin{--c:#1b7fc4}.lazy{--c:#c76a00}.eager{--c:#138a5e}.control{--c:#8b8f94}.other{--c:#a8479a}
.fill{fill:var(--c)}.stroke{stroke:var(--c);fill:none;stroke-width:1.8}.pale{fill:var(--c);opacity:.35}
@media(prefers-color-scheme:dark){svg{--ink:#e6edf3;--quiet:#9aa4af;--line:#3d444d}
.thin{--c:#58a6e8}.lazy{--c:#f0a04b}.eager{--c:#4cc596}.control{--c:#9aa0a6}.other{--c:#d88bcd}}`;

/** A chart of `body`, which is as wide as {@link WIDTH} and `height` high. */
export function chart(name: string, title: string, height: number, body: string): Chart {
  const lines = wrapped(title, 48).map(
    (line, at) => `<text class="title" x="4" y="${String(15 + at * 15)}">${escaped(line)}</text>`,
  );
  return {
    name,
    svg: `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${String(WIDTH)} ${String(height)}" role="img" aria-label="${escaped(title)}"><style>${STYLE}</style>${lines.join('')}${body}</svg>`,
  };
}

function wrapped(text: string, most: number): string[] {
  const lines = [''];
  for (const word of text.split(' ')) {
    const last = lines.length - 1;
    if ((lines[last] ?? '').length + word.length > most) lines.push(word);
    else lines[last] = `${lines[last] ?? ''} ${word}`.trim();
  }
  return lines;
}

/** The class that colours a subject. */
export function colourOf(subject: string): string {
  if (subject.includes('control')) return 'control';
  if (subject.includes('overlay') || subject.includes('metadata') || subject.includes(':')) return 'other';
  return subject.includes('lazy') ? 'lazy' : subject.includes('eager') ? 'eager' : 'thin';
}

/** Text at a place. */
export function label(x: number, y: number, text: string, more = ''): string {
  return `<text x="${x.toFixed(1)}" y="${y.toFixed(1)}" ${more}>${escaped(text)}</text>`;
}

/** Ticks of a horizontal axis at `y`, with lines up to `top`. */
export function axis(
  ticks: readonly number[],
  at: (value: number) => number,
  y: number,
  top: number,
  text: (value: number) => string,
): string {
  return ticks
    .map((tick) => {
      const x = at(tick).toFixed(1);
      return `<line class="axis" x1="${x}" x2="${x}" y1="${String(top)}" y2="${String(y)}"/>${label(at(tick), y + 14, text(tick), 'text-anchor="middle" class="quiet"')}`;
    })
    .join('');
}

/** `1.5 ms` and the like, from seconds. */
export function duration(seconds: number): string {
  if (seconds <= 0) return seconds === 0 ? '0' : `-${duration(-seconds)}`;
  if (seconds >= 1) return `${String(Number(seconds.toPrecision(2)))} s`;
  if (seconds >= 1e-3) return `${String(Number((seconds * 1e3).toPrecision(2)))} ms`;
  return `${String(Number((seconds * 1e6).toPrecision(2)))} µs`;
}
