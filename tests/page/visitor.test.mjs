// A visitor's whole visit: the student learns, the run survives a reload, and what is downloaded is the student.

import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { alarm, choose, launch, picture, ready, record, ROOT, state, steps, visit } from "./browser.mjs";

const POTSTILL = process.env.POTSTILL ?? `${ROOT}target/release/potstill`;
const PROMPT = "The people of the United States";
const CHANGE = { max_steps: 60, eval_steps: 20 };
let browser;
let scratch;

before(async () => {
  browser = await launch();
  scratch = mkdtempSync(join(tmpdir(), "potstill-page-"));
});
after(async () => {
  await browser.close();
  rmSync(scratch, { recursive: true });
});

const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;
const potstill = (args, options = {}) => execFileSync(POTSTILL, args, { encoding: "utf8", maxBuffer: 1 << 28, stdio: ["ignore", "pipe", "pipe"], ...options });

/** The losses of the same recipe by the command line, whose CPU runs the same twins with other vectors. */
function native(recipe) {
  const path = join(scratch, "recipe.json");
  const here = { ...recipe, output_path: join(scratch, "student"), device: "cpu", training_args: { ...recipe.training_args, logging_steps: 1 } };
  writeFileSync(path, JSON.stringify(here));
  potstill(["distill", path], { cwd: `${ROOT}web` });
  const lines = readFileSync(join(scratch, "student", "metrics.jsonl"), "utf8").trim().split("\n").map((line) => JSON.parse(line));
  return lines.filter((line) => typeof line.loss === "number").map((line) => line.loss);
}

test("a visitor trains, pauses, reloads, goes on, and takes the student along", { timeout: 600_000 }, async () => {
  const { page, errors, close } = await visit(browser);
  await ready(page);
  assert.equal(await alarm(page), null);
  await choose(page, { change: CHANGE });
  await page.fill("#prompt", PROMPT);
  await page.click("#start");
  await steps(page, 25);
  await page.click("#pause");
  await state(page, "paused");
  const paused = await record(page);
  assert.match(await page.textContent("#status"), /Paused at step \d+/);
  assert.ok(paused.words.before && paused.words.teacher, "before's and the teacher's words are there");

  await page.reload();
  await ready(page);
  assert.ok(await page.isVisible("#kept"), "an earlier run is offered");
  assert.equal(await page.textContent("#start"), "Go on");
  await page.click("#start");
  await state(page, "running");
  const resumed = await page.evaluate(() => window.potstillPage.run.student.stepsDone);
  assert.ok(resumed >= paused.step, `goes on at ${resumed}, was paused at ${paused.step}`);
  await state(page, "ended");

  const end = await record(page);
  assert.equal(await alarm(page), null);
  assert.ok(end.finished);
  const losses = end.student.losses;
  assert.deepEqual(losses.map(([step]) => step), Array.from({ length: 60 }, (_, i) => i + 1), "every step once");
  const values = losses.map(([, loss]) => loss);
  assert.ok(mean(values.slice(-10)) < 0.8 * mean(values.slice(0, 10)), `the loss falls: ${values}`);
  const [first, last] = [end.student.evaluations[0], end.student.evaluations.at(-1)];
  assert.ok(last.nll < first.nll - 0.5 && last.kld < first.kld - 0.5, "and on text never seen");
  assert.equal(end.twin.losses.length, 60);
  assert.ok(end.words.after && end.words.after !== end.words.before);

  // One run in two halves is one run: the command line's, without a break, has the same losses.
  const expected = native(end.recipe);
  assert.equal(expected.length, 60);
  const worst = Math.max(...expected.map((loss, i) => Math.abs(values[i] / loss - 1)));
  // Devices sum in other orders: docs/browser.md's tolerance.
  assert.ok(worst < 1e-3, `losses differ by ${worst} of native ones`);

  await theStudentIsTheSame(page);
  await picture(page, "light");
  assert.deepEqual(errors, []);
  await close();
});

/** Downloads the student, and compares what it says there and here. */
async function theStudentIsTheSame(page) {
  const [zip] = await Promise.all([page.waitForEvent("download"), page.click("#save-zip")]);
  assert.match(zip.suggestedFilename(), /^potstill-demo-step-60\.zip$/);
  const path = join(scratch, "student.zip");
  await zip.saveAs(path);
  const folder = join(scratch, "downloaded");
  execFileSync("python3", ["-m", "zipfile", "-e", path, folder]);
  const [weights] = await Promise.all([page.waitForEvent("download"), page.click("#save-safetensors")]);
  await weights.saveAs(join(scratch, "student.safetensors"));
  const model = flat(folder);
  assert.deepEqual(readFileSync(join(scratch, "student.safetensors")), readFileSync(join(model, "model.safetensors")));

  const here = await page.evaluate((prompt) => window.potstillPage.run.student.generate(prompt, { maxTokens: 24 }), PROMPT);
  const there = potstill(["generate", model, "--prompt", PROMPT, "--device", "cpu", "--max-tokens", "24", "--no-stream"]);
  assert.equal(there.trim(), here.trim(), "the same greedy text");

  // The distribution after the prompt: natively that of the last token of a longer text, as many as `score` tells.
  writeFileSync(join(scratch, "line.jsonl"), `${JSON.stringify({ text: `${PROMPT} and` })}\n`);
  const scored = JSON.parse(potstill(["score", model, join(scratch, "line.jsonl"), "--device", "cpu", "--top", "256"]));
  const files = Object.fromEntries(["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
    .map((name) => [name, readFileSync(join(model, name)).toString("base64")]));
  const logits = await page.evaluate(async ([files, prompt]) => {
    const blobs = Object.entries(files).map(([name, text]) => [name, new Blob([Uint8Array.from(atob(text), (c) => c.charCodeAt(0))])]);
    const model = await window.potstillPage.client.openModel(Object.fromEntries(blobs), "cpu");
    const logits = await model.logits(prompt);
    await model.free();
    return [...logits];
  }, [files, PROMPT]);
  const total = Math.log(logits.reduce((sum, logit) => sum + Math.exp(logit), 0));
  const native = scored.top_logprobs.at(-1);
  assert.equal(native.length, 256);
  assert.equal(logits.length, 1024);
  const worst = Math.max(...native.map(([id, logprob]) => Math.abs(logits[id] - total - logprob)));
  // Two layers of 64 channels in f32: sums of some hundred products, each rounded to 6e-8 of at most ten.
  assert.ok(worst < 1e-4, `log-probabilities differ by ${worst}`);
}

/** The folder that holds the model: the zip's top, or the one folder in it. */
function flat(folder) {
  const found = execFileSync("find", [folder, "-name", "config.json"], { encoding: "utf8" }).trim().split("\n");
  assert.equal(found.length, 1, `one model in the zip: ${found}`);
  return found[0].slice(0, -"/config.json".length);
}

test("the page stays free while the student learns", { timeout: 300_000 }, async () => {
  const init = () => {
    window.longTasks = [];
    new PerformanceObserver((list) => window.longTasks.push(...list.getEntries().map(({ duration }) => duration))).observe({ entryTypes: ["longtask"] });
  };
  const { page, close } = await visit(browser, { init });
  await ready(page);
  await choose(page, { change: { max_steps: 80, eval_steps: 20 } });
  await page.click("#start");
  await steps(page, 2);
  await page.evaluate(() => (window.longTasks.length = 0));
  await state(page, "ended");
  const longest = Math.max(0, ...(await page.evaluate(() => window.longTasks)));
  assert.ok(longest < 50, `a task of ${longest} ms`);
  await close();
});

test("stop ends early and keeps the student; start over begins anew", { timeout: 300_000 }, async () => {
  const { page, errors, close } = await visit(browser);
  await ready(page);
  await choose(page, { recipe: "text", change: { max_steps: 400, eval_steps: 100 } });
  await page.click("#start");
  await steps(page, 10);
  await page.click("#stop");
  await state(page, "ended");
  const { step, finished, words, twin } = await record(page);
  assert.ok(step >= 10 && step < 400 && !finished);
  assert.ok(words.after, "its words at the end");
  assert.equal(twin.losses.length, 0, "text alone has no twin");
  assert.ok(await page.isEnabled("#save-zip"));
  await page.click("#again");
  await page.waitForFunction(() => window.potstillPage.run.state === "running" && window.potstillPage.record.step > 0 && window.potstillPage.record.step < 10);
  await page.click("#stop");
  await state(page, "ended");
  await page.click("#clear-all");
  await page.waitForFunction(() => document.getElementById("store-line").textContent.startsWith("Downloads: 0 bytes. Runs to go on with: 0."));
  await page.reload();
  await ready(page);
  assert.equal(await page.isVisible("#kept"), false);
  assert.deepEqual(errors, []);
  await close();
});
