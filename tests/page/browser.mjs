// What the page's tests share: a browser, a page in it, and a visitor's hands.

import { chromium } from "../../web/node_modules/playwright-core/index.mjs";
import { mkdirSync } from "node:fs";
import { serve } from "./server.mjs";

export const ROOT = new URL("../../", import.meta.url).pathname;
const BINARY = process.env.CHROMIUM ?? "/usr/bin/chromium";
const FLAGS = [
  "--no-sandbox", "--enable-unsafe-webgpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
  "--disable-component-update", "--disable-sync",
];

/** A headless browser; `gpu: false` for one without WebGPU. */
export function launch({ gpu = true } = {}) {
  const flags = gpu ? FLAGS : [...FLAGS.filter((flag) => !flag.includes("webgpu")), "--disable-features=WebGPU,WebGPUService"];
  return chromium.launch({ executablePath: BINARY, headless: true, args: flags });
}

/** A visitor's visit: server, browser context and page. `close` ends them. */
export async function visit(browser, { server, context: options = {}, files, init } = {}) {
  const own = server ?? (await serve(`${ROOT}web`, files));
  const context = await browser.newContext({ viewport: { width: 1180, height: 900 }, acceptDownloads: true, ...options });
  const page = await context.newPage();
  // A machine may be busy.
  page.setDefaultTimeout(120_000);
  const errors = [];
  page.on("pageerror", (error) => errors.push(String(error)));
  page.on("console", (message) => message.type() === "error" && errors.push(message.text()));
  if (init) await page.addInitScript(init);
  await page.goto(own.url);
  const close = async () => {
    await context.close();
    if (!server) await own.close();
  };
  return { server: own, context, page, errors, close };
}

/** Waits until the page has looked around. */
export const ready = (page) => page.waitForFunction(() => ["Ready.", "Not ready."].includes(document.getElementById("status").textContent), null, { timeout: 120_000 });

/** A recipe that the tests can afford, in place of the chosen one; `change` edits it. */
export async function choose(page, { recipe = "demo", device = "cpu", change = {} } = {}) {
  await page.check(`[name=recipe][value=${recipe}]`);
  await page.selectOption("#device", device);
  const text = JSON.parse(await page.inputValue("#recipe-text"));
  Object.assign(text.training_args, change);
  text.dataset.holdout = { sequences: 8 };
  await openRecipe(page);
  await page.fill("#recipe-text", JSON.stringify(text, null, 2));
}

export const openRecipe = (page) => page.evaluate(() => (document.getElementById("recipe-details").open = true));

/** The record that the page keeps of its run. */
export const record = (page) => page.evaluate(() => window.potstillPage.record);

/** Waits for a state of the run. */
export const state = (page, wanted, timeout = 240_000) => page.waitForFunction(
  (wanted) => wanted.includes(window.potstillPage.run?.state), [wanted].flat(), { timeout });

/** Waits until the student has taken so many steps. */
export const steps = (page, count, timeout = 240_000) => page.waitForFunction(
  (count) => (window.potstillPage.record?.step ?? 0) >= count, count, { timeout });

/** What the page says is wrong: { kind, text }, or null. */
export const alarm = (page) => page.evaluate(() => {
  const box = document.getElementById("alert");
  return box.hidden ? null : { kind: box.dataset.kind, text: box.innerText };
});

/** A picture for people, in .cache/screens/. */
export async function picture(page, name, options = {}) {
  mkdirSync(`${ROOT}.cache/screens`, { recursive: true });
  await page.screenshot({ path: `${ROOT}.cache/screens/${name}.png`, fullPage: true, ...options });
}
