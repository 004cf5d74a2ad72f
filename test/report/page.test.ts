import { existsSync, readFileSync, statSync, writeFileSync } from 'node:fs';
import { pathToFileURL } from 'node:url';
import { chromium, type Browser } from 'playwright-core';
import { afterAll, beforeAll, expect, it } from 'vitest';
import { study } from '../../src/benchmark/study.ts';
import { chartsOf, pageOf } from '../../src/report/study.ts';
import { describeUnlessMissing } from '../tool/qemu.ts';
import { tempDir } from '../tool/temp.ts';

const BROWSER = '/usr/bin/chromium';

interface Seen {
  readonly overflow: number;
  readonly boxes: readonly (readonly [number, number])[];
  readonly letters: number;
  readonly paper: string;
  readonly ink: string;
  readonly verdicts: number;
}

/** What the browser is asked; it is text, as there is no document where this is compiled. */
const LOOK = `(() => {
  const text = document.querySelector('figure svg text');
  const boxes = [...document.querySelectorAll('figure svg')].map((svg) => svg.getBoundingClientRect());
  return {
    overflow: document.documentElement.scrollWidth - document.documentElement.clientWidth,
    boxes: boxes.map(({ width, height }) => [width, height]),
    letters: text.getBoundingClientRect().height,
    paper: getComputedStyle(document.body).backgroundColor,
    ink: getComputedStyle(text).fill,
    verdicts: document.querySelectorAll('.verdict li').length,
  };
})()`;

describeUnlessMissing('the report in a browser', existsSync(BROWSER) ? undefined : 'chromium', () => {
  let browser: Browser | undefined;
  let page = '';
  let charts = 0;

  beforeAll(async () => {
    const folder = tempDir();
    const found = await study(folder, {
      ...{ preset: 'quick', seed: 4, size: 16 * 1024 ** 2, cached: true },
      scenarios: ['create', 'random-sync', 'read'],
    });
    page = `${folder}/report.html`;
    writeFileSync(page, pageOf(found));
    charts = chartsOf(found).length;
    browser = await chromium.launch({ executablePath: BROWSER, args: ['--no-sandbox'] });
  });

  afterAll(() => browser?.close());

  it.each([
    [1280, 'light'],
    [1280, 'dark'],
    [400, 'light'],
    [400, 'dark'],
  ] as const)(
    'at %i pixels, %s: complete, readable, without errors and without the network',
    async (width, colorScheme) => {
      const tab = await browser!.newPage({ viewport: { width, height: 900 }, colorScheme });
      const told: string[] = [];
      const asked: string[] = [];
      tab.on('console', (message) => told.push(message.text()));
      tab.on('pageerror', (error) => told.push(error.message));
      tab.on('request', (request) => asked.push(request.url()));
      const address = pathToFileURL(page).href;
      await tab.goto(address);
      const seen = await tab.evaluate<Seen>(LOOK);
      const picture = await tab.screenshot({ fullPage: true });
      await tab.close();
      expect(told).toEqual([]);
      expect(asked.filter((url) => url !== address && !url.startsWith('data:'))).toEqual([]);
      expect(seen.overflow).toBeLessThanOrEqual(0);
      expect(seen.boxes).toHaveLength(charts);
      for (const [wide, high] of seen.boxes) {
        expect(wide).toBeGreaterThan(280);
        expect(high).toBeGreaterThan(100);
      }
      expect(seen.letters).toBeGreaterThan(9);
      expect(seen.verdicts).toBeGreaterThan(0);
      const light = (colour: string): number =>
        (/\d+, \d+, \d+/.exec(colour)?.[0] ?? '').split(', ').reduce((sum, part) => sum + Number(part), 0) /
        3;
      // Letters stand out from the paper, whichever of the two is bright.
      expect(light(seen.paper) > 127).toBe(colorScheme === 'light');
      expect(Math.abs(light(seen.paper) - light(seen.ink))).toBeGreaterThan(120);
      expect(picture.length).toBeGreaterThan(20_000);
    },
  );

  it('is one file of a size to look at, with no address in it that a browser would load', () => {
    const text = readFileSync(page, 'utf8');
    expect(statSync(page).size).toBeLessThan(1024 ** 2);
    expect(text).not.toMatch(/<(script|link(?! rel="icon" href="data:)|img|iframe)|@import|url\(/);
  });
});
