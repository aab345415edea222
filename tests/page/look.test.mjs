// The page by eye and by rule: accessibility checks of axe-core (WCAG 2.2 A and AA) in every look, by keyboard alone,
// and pictures for people in .cache/screens/.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { after, before, test } from "node:test";
import { choose, launch, picture, ready, record, ROOT, state, steps, visit } from "./browser.mjs";

const AXE = readFileSync(`${ROOT}web/node_modules/axe-core/axe.min.js`, "utf8");
const TAGS = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"];
let browser;

before(async () => (browser = await launch()));
after(() => browser.close());

async function check(page, look) {
  await page.evaluate(AXE);
  const { violations } = await page.evaluate((tags) => window.axe.run({ runOnly: tags }), TAGS);
  const found = violations.map(({ id, nodes }) => `${id}: ${nodes.map(({ target }) => target).join(", ")}`);
  assert.deepEqual(found, [], look);
}

/** Whether anything sticks out of the page's width. */
const overflow = (page) => page.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth);

test("every look is readable and accessible", { timeout: 300_000 }, async () => {
  const { page, errors, close } = await visit(browser);
  await ready(page);
  await check(page, "before a run");
  await choose(page, { change: { max_steps: 120, eval_steps: 15 } });
  await page.evaluate(() => (document.getElementById("recipe-details").open = false));
  await page.click("#start");
  await state(page, "running");
  await steps(page, 70);
  await check(page, "while it runs");
  await picture(page, "running");
  await state(page, "ended", 200_000);
  for (const who of ["before", "now", "after", "teacher"]) {
    assert.match(await page.textContent(`#words-${who}`), /^… ./, `words of ${who}`);
  }
  await page.evaluate(() => document.querySelectorAll("details").forEach((details) => (details.open = true)));
  await check(page, "after a run, everything open");
  await page.evaluate(() => document.querySelectorAll("details").forEach((details) => (details.open = false)));
  for (const colorScheme of ["light", "dark"]) {
    await page.emulateMedia({ colorScheme });
    for (const [name, width, height] of [["wide", 1180, 900], ["phone", 390, 844]]) {
      await page.setViewportSize({ width, height });
      await page.waitForTimeout(700);
      await check(page, `${colorScheme}, ${name}`);
      assert.ok((await overflow(page)) <= 0, `${name} does not scroll sideways`);
      await picture(page, `${colorScheme}-${name}`);
    }
  }
  await page.setViewportSize({ width: 320, height: 640 });
  await page.waitForTimeout(300);
  assert.ok((await overflow(page)) <= 0, "nor at the width of WCAG's reflow");
  assert.deepEqual(errors, []);
  await close();
});

test("a keyboard is enough", { timeout: 120_000 }, async () => {
  const { page, close } = await visit(browser);
  await ready(page);
  await choose(page, { recipe: "text", change: { max_steps: 300, eval_steps: 100 } });
  const press = async (id) => {
    for (let i = 0; i < 40; i++) {
      if (await page.evaluate((id) => document.activeElement.id === id, id)) return page.keyboard.press("Enter");
      await page.keyboard.press("Tab");
    }
    throw new Error(`${id} cannot be reached`);
  };
  await page.evaluate(() => document.activeElement.blur());
  await press("start");
  await steps(page, 3);
  assert.equal(await page.evaluate(() => document.activeElement.id), "stop", "the focus goes where it is needed");
  await page.keyboard.press("Shift+Tab");
  await page.keyboard.press("Enter");
  await state(page, "paused");
  assert.equal(await page.evaluate(() => document.activeElement.id), "pause", "and is not lost");
  await page.keyboard.press("Enter");
  await state(page, "running");
  await page.keyboard.press("Tab");
  await page.keyboard.press("Enter");
  await state(page, "ended");
  assert.ok((await record(page)).step < 300);
  await close();
});

test("a visitor's own folder is understood", { timeout: 120_000 }, async () => {
  const { page, close } = await visit(browser);
  await ready(page);
  await page.check("[name=recipe][value=own]");
  await page.selectOption("#device", "cpu");
  assert.ok(await page.isVisible("#own"));
  assert.equal(await page.isEnabled("#start"), false, "nothing to start yet");
  // Shards without their text: what is missing is said.
  await page.setInputFiles("#own-folder", `${ROOT}web/assets/shards`);
  await page.waitForFunction(() => !document.getElementById("alert").hidden);
  assert.match(await page.textContent("#alert"), /still missing: the text/);
  await page.setInputFiles("#own-folder", `${ROOT}web/assets`);
  await page.waitForFunction(() => document.getElementById("own-found").children.length === 3);
  assert.match(await page.textContent("#own-found"), /Shards of teacher: 76190 tokens in contexts of 128/);
  const recipe = JSON.parse(await page.inputValue("#recipe-text"));
  Object.assign(recipe.training_args, { max_steps: 12, eval_steps: 6 });
  recipe.dataset.holdout.sequences = 4;
  await page.evaluate(() => (document.getElementById("recipe-details").open = true));
  await page.fill("#recipe-text", JSON.stringify(recipe, null, 2));
  await page.click("#start");
  await state(page, ["ended", "failed"]);
  assert.equal(await page.isVisible("#alert"), false, await page.textContent("#alert"));
  const { student, words } = await record(page);
  assert.equal(student.losses.length, 12);
  assert.ok(student.evaluations.at(-1).kld > 0, "measured against the shards");
  assert.ok(words.teacher, "the teacher among the files speaks");
  await close();
});

test("a folder is dropped anywhere", { timeout: 120_000 }, async () => {
  const { page, context, errors, close } = await visit(browser);
  await ready(page);
  // As the mouse drops it: with a folder to walk, which a page's own DataTransfer does not have.
  const mouse = await context.newCDPSession(page);
  const data = { items: [], files: [`${ROOT}web/assets`], dragOperationsMask: 1 };
  for (const type of ["dragEnter", "dragOver", "drop"]) {
    await mouse.send("Input.dispatchDragEvent", { type, x: 600, y: 400, data });
  }
  await page.waitForFunction(() => document.getElementById("own-found").children.length === 3);
  assert.ok(await page.isChecked("[name=recipe][value=own]"), "its recipe is chosen");
  assert.match(await page.textContent("#own-found"), /Shards of teacher: 76190 tokens in contexts of 128/);
  assert.equal(JSON.parse(await page.inputValue("#recipe-text")).teacher.path, "own/assets/shards");
  assert.ok(await page.isEnabled("#start"));
  assert.equal(await page.evaluate(() => document.getElementById("own").classList.contains("over")), false);
  assert.deepEqual(errors, []);
  await close();
});
