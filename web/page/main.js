// The page: what can be pressed, and what happens then.

import { connect } from "../pkg/client.js";
import { bytes } from "./format.js";
import { blank, checkpointName, forget, load, save } from "./kept.js";
import * as own from "./own.js";
import { loadRecipes, parseRecipe } from "./recipes.js";
import { Run } from "./run.js";
import { alarm, calm, status, warn } from "./say.js";
import { showDevice, showRecord, showRun, showStorage } from "./show.js";

const element = (id) => document.getElementById(id);
const OWN = { id: "own", title: "Your own files", about: "Shards, a student, text: from a folder on this device.", prompt: "Once upon a time", teacher: null, recipe: null };

const page = { client: null, broken: false, files: null, recipes: [], run: null, record: null, keptStep: 0, saved: 0 };
const choice = () => page.recipes.find(({ id }) => id === document.querySelector("[name=recipe]:checked")?.value);

// --- choosing

function showRecipes() {
  for (const { id, title, about } of page.recipes) {
    const label = Object.assign(document.createElement("label"), { className: "recipe" });
    const input = Object.assign(document.createElement("input"), { type: "radio", name: "recipe", value: id });
    const [strong, span] = [document.createElement("strong"), document.createElement("span")];
    strong.textContent = title;
    span.textContent = about;
    label.append(input, strong, span);
    element("recipes").append(label);
    input.addEventListener("change", choose);
  }
}

function choose() {
  const { id, prompt, recipe } = choice();
  element("own").hidden = id !== "own";
  element("prompt").value = prompt;
  element("recipe-text").value = recipe ? JSON.stringify(recipe, null, 2) : "";
  update();
}

/** Takes a visitor's files and makes a recipe of them. */
async function take(files) {
  calm();
  const found = element("own-found");
  try {
    const { recipe, teacher, lines } = await own.understand(files);
    await page.client.removeFiles(own.FOLDER);
    await page.client.putFiles(own.FOLDER, files);
    page.files = files;
    Object.assign(OWN, { recipe, teacher });
    found.replaceChildren(...lines.map((text) => Object.assign(document.createElement("li"), { textContent: text })));
    choose();
  } catch (error) {
    found.replaceChildren();
    alarm(error);
  }
}

/** The run of an earlier visit goes on if it is still what is chosen; nothing else does. */
function resumable() {
  const { record } = page;
  return page.keptStep > 0 && record && choice()?.id === record.id && element("prompt").value === record.prompt
    && element("recipe-text").value === JSON.stringify(record.recipe, null, 2);
}

// --- the run

const tell = {
  status,
  state: (state) => {
    if (state === "paused") status(`Paused at step ${page.record.step}. Everything is saved.`);
    if (state === "ended") status(page.record.finished ? "The run is over." : `Stopped at step ${page.record.step}.`);
    if (state === "failed") status("The run was interrupted.");
    if (state !== "running" && state !== "opening") keep(true);
    if (state === "ended" || state === "failed" || state === "paused") refreshStorage();
    update();
  },
  change: () => {
    const { run, record } = page;
    if (run.student && !tell.device) {
      tell.device = true;
      showDevice(run.student.info.device);
    }
    warn(run.student?.info.warnings ?? []);
    showRecord(record);
    showRun(run);
    keep(false);
  },
  progress: (what, done, total) => {
    if (page.run?.state === "opening") status(`Fetching ${what.split("/").at(-1)}: ${bytes(done)}${total ? ` of ${bytes(total)}` : ""}`);
  },
  event: (event) => {
    const said = {
      "device-lost": () => `The GPU was lost; the run went on from step ${event.step} on a new one.`,
      resumed: () => `Going on from step ${event.step}.`,
      retry: () => `${event.url.split("/").at(-1)}: ${event.reason}; trying again (${event.attempt}).`,
      "not-cached": () => `Not kept in this browser: ${event.reason}. The run goes on in memory.`,
      "no-teacher": () => `The teacher’s words are missing: ${event.reason}`,
    }[event.type]();
    element("events").append(Object.assign(document.createElement("li"), { textContent: said }));
    element("events").dataset[event.type.replace("-", "")] = "";
    element("events").hidden = false;
  },
  failure: (error) => {
    // What failed so is not asked again.
    page.broken ||= error.kind === "internal";
    alarm(error);
  },
};

/** Keeps the record of the run for the next visit: now, or when two seconds have passed since the last time. */
function keep(now) {
  if (!page.record || (!now && performance.now() - page.saved < 2000)) return;
  page.saved = performance.now();
  save(page.record);
}

async function start() {
  calm();
  try {
    const goOn = resumable();
    const { id, title, teacher } = choice();
    const recipe = goOn ? page.record.recipe : parseRecipe(element("recipe-text").value);
    await page.run?.free();
    await reconnect();
    if (goOn) {
      page.record.device = element("device").value;
    } else {
      await page.client.clearStorage("checkpoints");
      page.record = blank({ id, title, teacher, recipe, prompt: element("prompt").value, device: element("device").value });
    }
    element("events").replaceChildren();
    element("events").hidden = true;
    tell.device = false;
    page.run = new Run(page.client, page.record, tell);
    showRecord(page.record);
    update();
    element("stop").focus();
    await page.run.go();
  } catch (error) {
    alarm(error);
  }
  page.keptStep = page.record?.step ?? 0;
  update();
  if (document.activeElement === document.body) element("start").focus({ preventScroll: true });
}

async function startOver() {
  page.keptStep = 0;
  forget();
  await start();
}

async function pauseOrResume() {
  if (page.run.state === "running") return page.run.pause();
  if (page.run.state !== "paused") return undefined;
  calm();
  return page.run.resume();
}

/** Which buttons make sense now, and what they say. */
function update() {
  const { run, record } = page;
  const state = run?.state ?? "idle";
  const busy = !["idle", "ended", "failed"].includes(state);
  const goOn = !busy && resumable();
  element("start").disabled = !page.client || busy || !element("recipe-text").value;
  element("start").textContent = goOn ? (record.finished ? "Open again" : "Go on") : "Start";
  // Not while it is being obeyed either: a button that is disabled loses the keyboard's focus.
  element("pause").disabled = !["running", "pausing", "paused"].includes(state);
  element("pause").textContent = state === "paused" ? "Go on" : "Pause";
  element("pause").classList.toggle("primary", state === "paused");
  element("stop").disabled = !["opening", "running", "paused"].includes(state);
  element("again").hidden = !goOn;
  for (const id of ["recipes", "prompt", "device", "recipe-text", "own-folder", "own-files", "clear-all", "clear-cache"]) {
    element(id).disabled = busy;
  }
  for (const id of ["save-zip", "save-safetensors"]) element(id).disabled = !run?.student || state === "opening";
  element("kept").hidden = !goOn || run !== null;
}

async function download(format) {
  try {
    const blob = await page.run.student.save(format);
    const link = document.createElement("a");
    link.href = URL.createObjectURL(blob);
    link.download = `potstill-${page.record.id}-step-${page.record.step}.${format}`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
  } catch (error) {
    alarm(error);
  }
}

// --- what is kept

async function refreshStorage() {
  try {
    showStorage(await page.client.storage());
  } catch {
    // The worker is gone; the next start brings another.
  }
}

async function clear(what) {
  await page.run?.free();
  await page.client.clearStorage(what);
  if (what === "all") {
    forget();
    Object.assign(page, { keptStep: 0, run: null, record: null });
  }
  status(what === "all" ? "Everything that this page kept is gone." : "The downloads are gone.");
  await refreshStorage();
  update();
}

async function recall() {
  const record = load();
  if (!record) return;
  const { checkpoints } = await page.client.storage();
  const radio = document.querySelector(`[name=recipe][value="${CSS.escape(record.id)}"]`);
  if (!checkpoints.includes(checkpointName(record.id, "student")) || !radio) return;
  radio.checked = true;
  if (record.id === "own") Object.assign(OWN, { recipe: record.recipe, teacher: record.teacher, prompt: record.prompt });
  choose();
  element("prompt").value = record.prompt;
  element("device").value = record.device;
  element("recipe-text").value = JSON.stringify(record.recipe, null, 2);
  Object.assign(page, { record, keptStep: record.step });
  showRecord(record);
  const again = record.id === "own" ? " Choose the same files again first." : "";
  element("kept").firstElementChild.textContent = record.finished
    ? `A finished run from an earlier visit is kept here: “${record.title}”. Open it again to download its student.`
    : `A run from an earlier visit is kept here: “${record.title}”, at step ${record.step} of ${record.totalSteps}. It can go on.${again}`;
}

// --- the beginning

/** A worker, if there is none that can be trusted, with the visitor's files in it. */
async function reconnect() {
  if (page.client && !page.broken) return;
  page.client?.close();
  page.client = await connect();
  page.broken = false;
  if (page.files) await page.client.putFiles(own.FOLDER, page.files);
}

async function lookAtDevice() {
  try {
    showDevice(await page.client.deviceInfo(element("device").value));
    calm();
  } catch (error) {
    alarm(error);
  }
}

function listen() {
  element("start").addEventListener("click", start);
  element("again").addEventListener("click", startOver);
  element("pause").addEventListener("click", () => pauseOrResume().catch(alarm));
  element("stop").addEventListener("click", () => page.run.stop().catch(alarm));
  element("device").addEventListener("change", lookAtDevice);
  for (const id of ["recipe-text", "prompt"]) element(id).addEventListener("input", update);
  element("save-zip").addEventListener("click", () => download("zip"));
  element("save-safetensors").addEventListener("click", () => download("safetensors"));
  element("clear-cache").addEventListener("click", () => clear("cache").catch(alarm));
  element("clear-all").addEventListener("click", () => clear("all").catch(alarm));
  for (const id of ["own-folder", "own-files"]) {
    element(id).addEventListener("change", ({ target }) => take(own.chosen(target.files)));
  }
  document.addEventListener("visibilitychange", () => document.hidden && keep(true));
  addEventListener("pagehide", () => keep(true));
  for (const type of ["dragover", "dragleave", "drop"]) {
    document.addEventListener(type, (event) => {
      event.preventDefault();
      element("own").classList.toggle("over", type === "dragover");
      if (element("recipes").disabled) return;
      // A drop anywhere is meant for the visitor's own files.
      if (type === "dragover" && choice()?.id !== "own") {
        document.querySelector("[name=recipe][value=own]").checked = true;
        choose();
      }
      if (type === "drop") own.dropped(event.dataTransfer).then(take, alarm);
    });
  }
}

async function begin() {
  try {
    page.recipes = [...await loadRecipes(), OWN];
    showRecipes();
    document.querySelector("[name=recipe]").checked = true;
    choose();
    listen();
    await reconnect();
    await recall();
    await lookAtDevice();
    await refreshStorage();
    status("Ready.");
  } catch (error) {
    status("Not ready.");
    alarm(error);
  }
  update();
}

// For tests and for the curious.
window.potstillPage = page;
await begin();
