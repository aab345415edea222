// Numbers of the page, in one run on one driver: steps a second in the browser beside the command line on the same
// SwiftShader and on the CPU, the time from the click to the first step, the longest task of the page's own thread, and
// the module's size. Prints a table and writes .cache/page/numbers.json.

import { execFileSync } from "node:child_process";
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { gzipSync } from "node:zlib";
import { alarm, launch, openRecipe, ready, record, ROOT, state, steps, visit } from "./browser.mjs";

const POTSTILL = process.env.POTSTILL ?? `${ROOT}target/release/potstill`;
const ICD = process.env.POTSTILL_SWIFTSHADER_ICD ?? "/usr/lib/chromium/vk_swiftshader_icd.json";
/** Steps of a run, and those of its beginning that are not timed: kernels are compiled in them. */
const [STEPS, FIRST] = [24, 4];
const median = (values) => values.toSorted((a, b) => a - b)[values.length >> 1];
const scratch = mkdtempSync(join(tmpdir(), "potstill-numbers-"));

/** The demo's recipe, taught by the text alone so that there is no twin, and short. */
function recipe() {
  const { recipe } = JSON.parse(readFileSync(`${ROOT}web/recipes/text.json`, "utf8"));
  recipe.dataset.holdout = { sequences: 4 };
  Object.assign(recipe.training_args, { max_steps: STEPS, eval_steps: STEPS, logging_steps: 1, save_steps: 1000 });
  return recipe;
}

/** Seconds of each step by the command line. */
function native(device) {
  const folder = join(scratch, device);
  const path = join(scratch, `${device}.json`);
  writeFileSync(path, JSON.stringify({ ...recipe(), output_path: folder, device }));
  const env = { ...process.env, VK_ICD_FILENAMES: ICD, VK_DRIVER_FILES: ICD, XDG_RUNTIME_DIR: process.env.XDG_RUNTIME_DIR ?? scratch };
  execFileSync(POTSTILL, ["distill", path], { cwd: `${ROOT}web`, env, stdio: "ignore" });
  const lines = readFileSync(join(folder, "metrics.jsonl"), "utf8").trim().split("\n").map((line) => JSON.parse(line));
  // A line a step; `seconds` are those of training since the beginning.
  const seconds = lines.filter(({ kind }) => kind === "train").map((line) => line.seconds);
  return median(seconds.slice(1).map((at, i) => at - seconds[i]).slice(FIRST));
}

async function inBrowser(browser, device) {
  const init = () => {
    window.longTasks = [];
    new PerformanceObserver((list) => window.longTasks.push(...list.getEntries().map(({ duration }) => duration))).observe({ entryTypes: ["longtask"] });
  };
  const { page, close } = await visit(browser, { init });
  await ready(page);
  await page.check("[name=recipe][value=text]");
  await page.selectOption("#device", device);
  await openRecipe(page);
  await page.fill("#recipe-text", JSON.stringify(recipe(), null, 2));
  await page.evaluate(() => (window.longTasks.length = 0));
  const start = Date.now();
  await page.click("#start");
  await steps(page, 1, 900_000);
  const first = (Date.now() - start) / 1000;
  // The page asks for as many steps as fit a quarter of a second; what they take is measured around each call.
  await page.evaluate(() => {
    window.stepSeconds = [];
    const { student } = window.potstillPage.run;
    window.potstillPage.run.tell.change = ((tell) => () => (window.stepSeconds.push([student.stepsDone, performance.now()]), tell()))(window.potstillPage.run.tell.change);
  });
  await state(page, ["ended", "failed"], 900_000);
  if (await alarm(page)) throw new Error((await alarm(page)).text);
  const taken = await page.evaluate(() => window.stepSeconds);
  const rates = taken.slice(1).flatMap(([step, at], i) => {
    const [before, then] = taken[i];
    return step > before && before >= FIRST ? [(at - then) / 1000 / (step - before)] : [];
  });
  const longest = Math.max(0, ...(await page.evaluate(() => window.longTasks)));
  const { student } = await record(page);
  await close();
  return { secondsAStep: median(rates), firstStep: first, longestTask: longest, losses: student.losses.length };
}

const size = gzipSync(readFileSync(`${ROOT}pkg/potstill_bg.wasm`), { level: 9 }).length;
const numbers = { moduleGzipped: size };
const rate = (seconds) => (1 / seconds).toFixed(2);
console.log(`module, gzipped: ${(size / 1e6).toFixed(2)} MB\n`);
console.log("| | browser, steps/s | native, steps/s | share | click to first step, s | longest main-thread task, ms |");
console.log("| --- | --- | --- | --- | --- | --- |");
const browser = await launch();
mkdirSync(`${ROOT}.cache/page`, { recursive: true });
for (const [name, device] of [["CPU (one thread there, all here)", "cpu"], ["SwiftShader", "gpu"]]) {
  const here = await inBrowser(browser, device);
  const there = native(device);
  const share = there / here.secondsAStep;
  numbers[device] = { ...here, nativeSecondsAStep: there, share };
  const row = [name, rate(here.secondsAStep), rate(there), share.toFixed(2), here.firstStep.toFixed(1), here.longestTask.toFixed(0)];
  console.log(`| ${row.join(" | ")} |`);
  writeFileSync(`${ROOT}.cache/page/numbers.json`, `${JSON.stringify(numbers, null, 2)}\n`);
}
await browser.close();
rmSync(scratch, { recursive: true });
