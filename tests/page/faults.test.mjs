// Careless hosts, full disks, missing and lost GPUs: each is said plainly, and nothing is lost.

import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { alarm, choose, launch, ready, record, ROOT, state, steps, visit } from "./browser.mjs";
import { serve } from "./server.mjs";

const SHARD = /\/shards\/\d+\.shard$/;
const LIMIT = { timeout: 300_000 };
let browser;

before(async () => (browser = await launch()));
after(() => browser.close());

/** A visit whose server has faults, and the start of a small run. */
async function begin(faults, { change = { max_steps: 30, eval_steps: 15 }, ranges = true, ...rest } = {}) {
  const server = await serve(`${ROOT}web`, { ranges });
  server.faults.push(...faults);
  const found = await visit(browser, { server });
  await ready(found.page);
  await choose(found.page, { change, ...rest });
  await found.page.click("#start");
  const close = async () => {
    await found.close();
    await server.close();
  };
  return { ...found, server, close };
}

const events = (page) => page.textContent("#events");

test("dropped connections are tried again", LIMIT, async () => {
  const { page, server, close } = await begin([{ match: SHARD, kind: "drop", times: 3 }]);
  await state(page, "ended");
  assert.equal(await alarm(page), null);
  assert.match(await events(page), /trying again/);
  assert.equal(server.requests.filter(({ fault }) => fault === "drop").length, 3);
  assert.equal((await record(page)).student.losses.length, 30);
  await close();
});

test("a missing manifest is named", LIMIT, async () => {
  const { page, close } = await begin([{ match: /manifest\.json$/, kind: "missing" }]);
  await state(page, "failed");
  const { kind, text } = await alarm(page);
  assert.equal(kind, "network");
  assert.match(text, /manifest\.json/);
  assert.match(text, /404/);
  assert.ok(await page.isEnabled("#start"), "the visitor can try again");
  await close();
});

for (const [fault, kind, says] of [["missing", "network", /404/], ["short", /network|damaged/, /\.shard/], ["corrupt", "damaged", /SHA-256|digest/i]]) {
  test(`a shard that comes ${fault} is refused, and the run goes on when it is mended`, LIMIT, async () => {
    const { page, server, close } = await begin([{ match: SHARD, kind: fault }]);
    await page.waitForFunction(() => !document.getElementById("alert").hidden, null, { timeout: 120_000 });
    const said = await alarm(page);
    assert.match(said.kind, new RegExp(kind));
    assert.match(said.text, says);
    await state(page, ["paused", "failed"]);
    server.faults.length = 0;
    const button = (await page.evaluate(() => window.potstillPage.run.state)) === "paused" ? "#pause" : "#start";
    await page.click(button);
    await state(page, "ended");
    assert.equal(await alarm(page), null, "the message is gone");
    const { student } = await record(page);
    assert.deepEqual(student.losses.map(([step]) => step), Array.from({ length: 30 }, (_, i) => i + 1));
    await close();
  });
}

test("a server without ranges sends whole shards", LIMIT, async () => {
  const { page, close } = await begin([], { ranges: false });
  await state(page, "ended");
  assert.equal(await alarm(page), null);
  await close();
});

test("a stop while files are on their way leaves at once", LIMIT, async () => {
  const { page, close } = await begin([{ match: /text\.jsonl$/, kind: "delay", ms: 60_000 }]);
  await page.waitForFunction(() => window.potstillPage.run?.state === "opening");
  await page.click("#stop");
  await state(page, "ended", 20_000);
  assert.equal(await alarm(page), null, "a stop is no error");
  assert.ok(await page.isEnabled("#start"));
  await close();
});

test("where storage is full the run goes on in memory and says so", LIMIT, async () => {
  const server = await serve(`${ROOT}web`);
  const { page, context, close } = await visit(browser, { server });
  await ready(page);
  const protocol = await context.newCDPSession(page);
  await protocol.send("Storage.overrideQuotaForOrigin", { origin: new URL(server.url).origin, quotaSize: 50_000 });
  await choose(page, { change: { max_steps: 30, eval_steps: 15 } });
  await page.click("#start");
  await state(page, ["ended", "paused", "failed"]);
  const said = `${await events(page)} ${(await alarm(page))?.text ?? ""}`;
  assert.match(said, /Not kept in this browser/);
  assert.match(said, /quota|storage|room/i);
  assert.equal(await page.evaluate(() => window.potstillPage.run.state), "ended");
  assert.equal((await record(page)).student.losses.length, 30, "all steps were taken");
  assert.ok(await page.isEnabled("#save-zip"));
  await close();
  await server.close();
});

test("a recipe with a misspelt key is refused with its name", LIMIT, async () => {
  const { page, close } = await visit(browser);
  await ready(page);
  await choose(page, { change: { max_stepps: 5 } });
  await page.click("#start");
  await state(page, "failed");
  const { kind, text } = await alarm(page);
  assert.equal(kind, "input");
  assert.match(text, /max_stepps/);
  await close();
});

test("without WebGPU the CPU serves, and the page says so", LIMIT, async () => {
  const plain = await launch({ gpu: false });
  const { page, close } = await visit(plain);
  await ready(page);
  assert.match(await page.textContent("#device-line"), /on the CPU, because this browser offers no GPU/);
  await choose(page, { device: "auto", change: { max_steps: 20, eval_steps: 10 } });
  await page.click("#start");
  await state(page, "ended");
  assert.equal(await alarm(page), null);
  assert.match(await page.textContent("#device-line"), /on the CPU/);
  await page.selectOption("#device", "gpu");
  await page.waitForFunction(() => !document.getElementById("alert").hidden);
  assert.equal((await alarm(page)).kind, "no-gpu");
  await close();
  await plain.close();
});

test("a lost GPU is replaced, and the run goes on", { timeout: 900_000 }, async () => {
  const server = await serve(`${ROOT}web`);
  const { page, close } = await visit(browser, { server });
  await ready(page);
  // Short, small and without a twin: a software driver computes.
  await choose(page, { recipe: "text", device: "gpu", change: { max_steps: 6, eval_steps: 6, per_device_train_batch_size: 1 } });
  await page.click("#start");
  await steps(page, 2, 600_000);
  assert.match(await page.textContent("#device-line"), /on the GPU/);
  await page.evaluate(() => window.potstillPage.run.student.loseDevice());
  await state(page, "ended", 600_000);
  assert.equal(await alarm(page), null);
  assert.match(await events(page), /The GPU was lost; the run went on from step \d/);
  const { student, finished } = await record(page);
  assert.ok(finished);
  assert.deepEqual(student.losses.map(([step]) => step), [1, 2, 3, 4, 5, 6], "every step once");
  await close();
  await server.close();
});

test("a worker that dies is replaced, and the run goes on from its checkpoint", LIMIT, async () => {
  const { page, close } = await begin([]);
  await steps(page, 5);
  await page.click("#pause");
  await state(page, "paused");
  const { step } = await record(page);
  await page.click("#pause");
  // As an out-of-memory crash would: nothing in it answers any more.
  await page.evaluate(() => window.potstillPage.client.close());
  await state(page, "failed");
  await page.evaluate(() => (window.potstillPage.broken = true));
  await page.click("#start");
  await page.waitForFunction(() => window.potstillPage.run.student);
  assert.ok((await page.evaluate(() => window.potstillPage.run.student.stepsDone)) >= step, "nothing is lost");
  await state(page, "ended");
  assert.equal(await alarm(page), null);
  assert.deepEqual((await record(page)).student.losses.map(([at]) => at), Array.from({ length: 30 }, (_, i) => i + 1));
  await close();
});
