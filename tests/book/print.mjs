// Print the whole book, built as one page, into one PDF file.
//
//   node tests/book/print.mjs [PAGE.html] [FILE.pdf]
//
// Needs what browse.mjs needs: Node, Chromium, and once `npm install` in this folder.

import { copyFileSync, existsSync, statSync } from "node:fs";
import { dirname, join, relative, resolve } from "node:path";
import { fileURLToPath } from "node:url";

import { FLAGS, findBrowser, serve } from "./site.mjs";

const root = join(dirname(fileURLToPath(import.meta.url)), "..", "..");
const source = resolve(process.argv[2] ?? join(root, "_build", "singlehtml", "book", "preface.html"));
const target = resolve(process.argv[3] ?? join(root, "_build", "refinemath.pdf"));

const PATIENCE = 900_000; // milliseconds; a long book on a busy machine

function fail(reason) {
  console.log(`FAILED: PDF of the book: ${reason}`);
  process.exit(1);
}

const browserPath = findBrowser();
if (!browserPath) fail("no Chromium found; install it, or set CHROMIUM to its path");
const { chromium } = await import("playwright-core").catch(() => fail("playwright-core is missing; run: npm install --prefix tests/book"));
if (!existsSync(source)) fail(`no page ${source}`);

// Sphinx writes the page beside the preface, but its links start at the top of the site.
const site = resolve(dirname(source), "..");
copyFileSync(source, join(site, "all.html"));
const server = await serve(site);
const browser = await chromium.launch({ executablePath: browserPath, headless: true, args: FLAGS });
const page = await browser.newPage({ viewport: { width: 900, height: 1200 }, colorScheme: "light", reducedMotion: "reduce" });
await page.goto(`http://127.0.0.1:${server.address().port}/all.html`, { waitUntil: "load", timeout: PATIENCE });
await page.evaluate(async () => {
  await window.MathJax?.startup?.promise;
  for (const details of document.querySelectorAll("details")) details.open = true;
  for (const image of document.images) image.loading = "eager";
  await Promise.all([...document.images].map((image) => image.decode().catch(() => undefined)));
});
await page.pdf({
  path: target,
  format: "A4",
  margin: { top: "20mm", bottom: "20mm", left: "18mm", right: "18mm" },
  displayHeaderFooter: true,
  headerTemplate: "<span></span>",
  footerTemplate: '<div style="width:100%;text-align:center;font-size:8px;color:#565c66"><span class="pageNumber"></span></div>',
  outline: true,
  tagged: true,
  timeout: PATIENCE,
});
await browser.close();
server.close();
console.log(`${relative(".", target)}: ${(statSync(target).size / 1e6).toFixed(1)} MB`);
