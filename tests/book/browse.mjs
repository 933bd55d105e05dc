// Visit every page of the built book in a real browser and report what a reader would suffer.
//
//   node tests/book/browse.mjs [--site DIR] [--out DIR] [--only TEXT] [--required]
//
// Each page is opened at desktop and phone width, in light and dark.  It must show
//   * no error on the console, no failed request, no request to another host,
//   * no horizontal scrolling, and every picture loaded,
//   * every formula typeset,
//   * every interactive figure reacting (see `react` below),
//   * no serious or critical violation of axe-core's accessibility rules.
// The search page must find "Newton".  Every slide of every deck must fit, and show its pictures.
//
// --out DIR     write a screenshot of each visit there
// --only TEXT   visit only pages whose address contains TEXT
// --required    a missing browser or package is a failure; without it the check is skipped
//
// The script installs nothing.  It needs Node 18, Chromium (or the variable CHROMIUM with its
// path), and once `npm install` in this folder.

import { existsSync, mkdirSync, readdirSync } from "node:fs";
import { availableParallelism } from "node:os";
import { dirname, join, relative, resolve, sep } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";

import { FLAGS, findBrowser, serve } from "./site.mjs";

const here = dirname(fileURLToPath(import.meta.url));
const { values: options } = parseArgs({
  options: {
    site: { type: "string", default: join(here, "..", "..", "_build", "html") },
    out: { type: "string" },
    only: { type: "string", default: "" },
    required: { type: "boolean", default: false },
  },
});
const site = resolve(options.site);

const VISITS = [
  { name: "desktop-light", viewport: { width: 1280, height: 900 }, colorScheme: "light" },
  { name: "desktop-dark", viewport: { width: 1280, height: 900 }, colorScheme: "dark" },
  { name: "phone-light", viewport: { width: 390, height: 844 }, colorScheme: "light" },
  { name: "phone-dark", viewport: { width: 390, height: 844 }, colorScheme: "dark" },
];

const PATIENCE = 180_000; // milliseconds; a busy machine is slow, and that is no defect of the book

function skip(reason) {
  console.log(`${options.required ? "FAILED" : "SKIPPED"}: browser check of the book: ${reason}`);
  process.exit(options.required ? 1 : 0);
}

function htmlFiles(folder) {
  return readdirSync(folder, { withFileTypes: true }).flatMap((entry) => {
    const path = join(folder, entry.name);
    if (entry.isDirectory()) return entry.name.startsWith("_") ? [] : htmlFiles(path);
    return entry.name.endsWith(".html") ? [path] : [];
  });
}

// The following functions run inside the page.

/** Elements that stick out of the window, when the page as a whole scrolls sideways. */
function overflow() {
  const root = document.documentElement;
  if (root.scrollWidth <= root.clientWidth + 1) return [];
  const clipped = (element) => {
    for (let up = element.parentElement; up && up !== document.body; up = up.parentElement) {
      if (getComputedStyle(up).overflowX !== "visible") return true;
    }
    return false;
  };
  const wide = [...document.body.querySelectorAll("*")].filter(
    (element) => element.getBoundingClientRect().right > root.clientWidth + 1 && !clipped(element),
  );
  const names = wide.slice(0, 3).map((e) => `${e.tagName.toLowerCase()}.${[...e.classList].join(".")}`);
  return [`scrolls sideways: ${root.scrollWidth} > ${root.clientWidth} pixels, because of ${names.join(", ") || "?"}`];
}

/** Pictures that should be seen and are not. */
async function pictures() {
  for (const image of document.images) image.loading = "eager";
  const shown = [...document.images].filter((image) => image.checkVisibility());
  await Promise.all(shown.map((image) => image.decode().catch(() => undefined)));
  return shown
    .filter((image) => !image.complete || image.naturalWidth === 0 || image.getBoundingClientRect().width < 2)
    .map((image) => `picture not visible: ${image.getAttribute("src")?.slice(0, 80)}`);
}

/** Formulas that stayed raw, or that MathJax could not read. */
async function formulas() {
  if (window.MathJax?.startup) await window.MathJax.startup.promise;
  const sources = [...document.querySelectorAll(".math")].filter((element) => element.checkVisibility());
  const raw = sources.filter((element) => !element.querySelector("mjx-container"));
  const broken = [...document.querySelectorAll("mjx-merror, [data-mjx-error]")];
  return [...raw, ...broken].map((element) => `formula not typeset: ${element.textContent.slice(0, 60)}`);
}

/**
 * A figure that reacts stands in an element of class "interactive".  It has one or more inputs,
 * selects or buttons, and a picture (svg, canvas, img or .plot).  Using a control must change it.
 */
async function react() {
  const state = (figure) =>
    [...figure.querySelectorAll("svg, canvas, img, output, .plot")]
      .map((part) => (part.tagName === "CANVAS" ? part.toDataURL() : part.outerHTML))
      .join();
  const use = (control) => {
    if (control.tagName === "BUTTON") return control.click();
    if (control.tagName === "SELECT") control.selectedIndex = (control.selectedIndex + 1) % control.options.length;
    else if (control.type === "range") {
      const middle = (Number(control.min || 0) + Number(control.max || 100)) / 2;
      control.value = Number(control.value) > middle ? control.min || 0 : control.max || 100;
    } else return control.click();
    control.dispatchEvent(new Event("input", { bubbles: true }));
    control.dispatchEvent(new Event("change", { bubbles: true }));
  };
  const defects = [];
  for (const [i, figure] of [...document.querySelectorAll(".interactive")].entries()) {
    const controls = [...figure.querySelectorAll("input, select, button")];
    if (controls.length === 0) defects.push(`interactive figure ${i} has no control`);
    for (const control of controls) {
      const before = state(figure);
      use(control);
      await new Promise((done) => setTimeout(done, 250));
      if (state(figure) === before) {
        defects.push(`interactive figure ${i}: ${control.getAttribute("aria-label") ?? control.id} changes nothing`);
      }
    }
  }
  return defects;
}

async function accessibility() {
  const rules = { runOnly: ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "best-practice"] };
  const result = await window.axe.run(document, { ...rules, resultTypes: ["violations"] });
  return result.violations
    .filter((violation) => ["serious", "critical"].includes(violation.impact))
    .map(
      (violation) =>
        `accessibility (${violation.impact}): ${violation.id}, ${violation.help}; ` +
        `${violation.nodes.length} times, first ${violation.nodes[0].html.slice(0, 140)} ` +
        `${violation.nodes[0].any[0]?.message ?? ""}`,
    );
}

/** A new page that writes down what goes wrong on it. */
async function watched(context, origin) {
  const page = await context.newPage();
  page.setDefaultTimeout(PATIENCE);
  const defects = [];
  page.on("console", (message) => {
    if (["error", "warning"].includes(message.type())) defects.push(`console: ${message.text()}`);
  });
  page.on("pageerror", (error) => defects.push(`script error: ${error.message}`));
  page.on("requestfailed", (request) => {
    if (request.url().startsWith(origin)) defects.push(`request failed: ${request.url()}`);
  });
  page.on("response", (response) => {
    if (response.status() >= 400) defects.push(`answer ${response.status()}: ${response.url()}`);
  });
  page.on("request", (request) => {
    const url = request.url();
    if (!url.startsWith(origin) && !/^(data|blob):/.test(url)) defects.push(`asks another host: ${url}`);
  });
  return { page, defects };
}

let interactive = 0; // how many interactive figures were tried, over all visits

const picture = (path, name) => join(options.out, `${path.replaceAll("/", "_").replace(/\.html$/, "")}-${name}.png`);

async function visit(context, origin, path, name, axe) {
  const { page, defects } = await watched(context, origin);
  try {
    await page.goto(`${origin}/${path}`, { waitUntil: "load" });
    defects.push(...(await page.evaluate(formulas)));
    defects.push(...(await page.evaluate(pictures)));
    defects.push(...(await page.evaluate(overflow)));
    await page.addScriptTag({ content: axe });
    defects.push(...(await page.evaluate(accessibility)));
    if (options.out) await page.screenshot({ path: picture(path, name), fullPage: true });
    const figures = await page.locator(".interactive").count();
    interactive += figures; // not in one line with the wait: visits run side by side, and what others added meanwhile would be lost
    defects.push(...(await page.evaluate(react)));
    defects.push(...(await page.evaluate(overflow)));
  } catch (error) {
    defects.push(`visit broke off: ${error.message}`);
  }
  await page.close();
  return [...new Set(defects)].map((defect) => ({ defect, where: `${path} [${name}]` }));
}

/** What is wrong with the slide that is shown. */
function badSlide() {
  const slide = window.show.getCurrentSlide();
  const defects = [];
  if (slide.scrollHeight > slide.clientHeight + 1) defects.push("the text does not fit on a slide");
  if (slide.querySelector(".sheet").scrollWidth > slide.clientWidth + 1) defects.push("a slide is too wide");
  for (const image of slide.querySelectorAll("img")) {
    if (image.naturalWidth === 0 || image.getBoundingClientRect().width < 2) defects.push("a picture of a slide is not visible");
  }
  if (document.querySelector("mjx-merror, [data-mjx-error]")) defects.push("a formula of a slide is not typeset");
  const { h, v } = window.show.getIndices();
  return defects.map((defect) => [defect, `slide ${h + 1}.${v + 1}`]);
}

/** Every slide of a deck, one after the other. */
async function present(context, origin, path) {
  const { page, defects } = await watched(context, origin);
  const found = [];
  try {
    await page.goto(`${origin}/${path}`, { waitUntil: "load" });
    await page.waitForFunction(() => window.show?.isReady());
    const steps = 1000; // far more than any deck has
    for (let i = 0; i < steps; i += 1) {
      const bad = await page.evaluate(badSlide);
      found.push(...bad.map(([defect, place]) => ({ defect, where: `${path}, ${place}` })));
      if (options.out && (i < 4 || bad.length > 0 || options.only)) await page.screenshot({ path: picture(path, String(i).padStart(2, "0")) });
      if (await page.evaluate(() => window.show.isLastSlide() || void window.show.next())) break;
    }
  } catch (error) {
    defects.push(`visit broke off: ${error.message}`);
  }
  await page.close();
  return [...found, ...[...new Set(defects)].map((defect) => ({ defect, where: path }))];
}

async function search(context, origin, word) {
  const { page } = await watched(context, origin);
  await page.goto(`${origin}/search.html?q=${word}`);
  const hit = page.locator("#search-results li a").first();
  const found = await hit.waitFor({ timeout: 60_000 }).then(() => true, () => false);
  const defects = found ? [] : [{ defect: `the search for "${word}" finds nothing`, where: "search.html" }];
  if (found && options.out) await page.screenshot({ path: join(options.out, "search-newton.png") });
  await page.close();
  return defects;
}

/** The same defect on many pages is reported once, with the places where it was seen. */
function grouped(defects) {
  const groups = new Map();
  for (const { defect, where } of defects) groups.set(defect, [...(groups.get(defect) ?? []), where]);
  return groups;
}

const browserPath = findBrowser();
if (!browserPath) skip("no Chromium found; install it, or set CHROMIUM to its path");
const packages = await Promise.all([import("playwright-core"), import("axe-core")]).catch(() => undefined);
if (!packages) skip(`playwright-core or axe-core is missing; run: npm install --prefix ${relative(".", here) || "."}`);
if (!existsSync(site)) skip(`no built book in ${site}; run: make book`);
const [{ chromium }, { default: axe }] = packages;
if (options.out) mkdirSync(options.out, { recursive: true });

const built = htmlFiles(site)
  .map((path) => relative(site, path).split(sep).join("/"))
  .filter((path) => path !== "index.html" && path.includes(options.only))
  .sort();
const decks = built.filter((path) => path.startsWith("slides/"));
const pages = built.filter((path) => !path.startsWith("slides/"));

const server = await serve(site);
const origin = `http://127.0.0.1:${server.address().port}`;
const browser = await chromium.launch({ executablePath: browserPath, headless: true, args: FLAGS });

const tasks = [];
const talk = await browser.newContext({ viewport: { width: 1280, height: 720 }, reducedMotion: "reduce" });
for (const path of decks) tasks.push(() => present(talk, origin, path));
for (const { name, ...settings } of VISITS) {
  const context = await browser.newContext({ ...settings, reducedMotion: "reduce" });
  if (name === "desktop-light" && !options.only) tasks.push(() => search(context, origin, "Newton"));
  for (const path of pages) tasks.push(() => visit(context, origin, path, name, axe.source));
}

const defects = [];
const work = async () => {
  for (let task = tasks.shift(); task; task = tasks.shift()) defects.push(...(await task()));
};
await Promise.all(Array.from({ length: availableParallelism() }, work));
await browser.close();
server.close();

for (const [defect, places] of grouped(defects)) {
  console.log(`${defect}\n    seen ${places.length} times: ${places.slice(0, 4).join(", ")}`);
}
console.log(
  `browser check of the book: ${pages.length} pages, ${pages.length * VISITS.length} visits, ` +
    `${interactive / VISITS.length} interactive figures, ${decks.length} decks of slides, ${defects.length} defects`,
);
process.exit(defects.length > 0 || built.length === 0 ? 1 : 0);
