// From the record of a run to what stands on the page.

import { Chart } from "./charts.js";
import { bytes, count, duration, parameters } from "./format.js";

const element = (id) => document.getElementById(id);
const charts = {
  loss: new Chart(element("chart-loss"), "Loss while learning", true),
  nll: new Chart(element("chart-nll"), "Held-out loss", false),
  kld: new Chart(element("chart-kld"), "Divergence from the teacher", false),
};

const put = (id, text) => {
  if (element(id).textContent !== text) element(id).textContent = text;
};

/** The curves, the table, the words. Of what has not changed nothing is touched. */
export function showRecord(record) {
  const { student, twin, totalSteps } = record;
  const of = (side, key) => side.evaluations.filter((e) => e[key] !== undefined).map((e) => [e.step, e[key]]);
  charts.loss.set(student.losses, twin.losses, totalSteps);
  charts.nll.set(of(student, "nll"), of(twin, "nll"), totalSteps);
  charts.kld.set(of(student, "kld"), of(twin, "kld"), totalSteps);
  put("fact-step", totalSteps ? `${count(record.step)} of ${count(totalSteps)}` : "–");
  element("progress").value = totalSteps ? record.step / totalSteps : 0;
  showTable(student.evaluations, twin.evaluations);
  showWords(record);
}

let tabled = "";
function showTable(student, twin) {
  const last = (list) => (list.length ? `${list[0].step}-${list.at(-1).step}-${list.length}` : "");
  const key = `${last(student)}|${last(twin)}`;
  if (key === tabled) return;
  tabled = key;
  const number = (x) => (x === undefined ? "–" : x.toFixed(3));
  const percent = (x) => (x === undefined ? "–" : `${(100 * x).toFixed(1)} %`);
  const steps = [...new Set([...student, ...twin].map(({ step }) => step))].sort((a, b) => a - b);
  const rows = steps.map((step) => {
    const [s, t] = [student, twin].map((list) => list.find((e) => e.step === step) ?? {});
    const row = document.createElement("tr");
    for (const text of [count(step), number(s.nll), number(t.nll), number(s.kld), number(t.kld), percent(s.agreement)]) {
      row.append(Object.assign(document.createElement("td"), { textContent: text }));
    }
    return row;
  });
  element("table").tBodies[0].replaceChildren(...rows);
}

function showWords({ words, prompt, step }) {
  put("prompt-shown", prompt);
  put("words-now-title", step > 0 ? `Student, at step ${count(step)}` : "Student, now");
  const said = { before: words.before, now: step > 0 ? words.now : null, after: words.after, teacher: words.teacher };
  const empty = { before: "not asked yet", now: "not asked yet", after: "when the run is over", teacher: "not asked yet" };
  for (const [who, text] of Object.entries(said)) {
    const place = element(`words-${who}`);
    const shown = text === null ? empty[who] : `… ${text.trim() || "(nothing)"}`;
    if (place.textContent !== shown) place.textContent = shown;
    place.classList.toggle("empty", text === null);
  }
}

/** Speed, time left, sizes: of a run that is open. */
export function showRun(run) {
  const [student] = run.sides;
  if (!student) return;
  const { info } = student.trainer;
  put("fact-student", `${parameters(info.parameters)} parameters`);
  const total = run.sides.reduce((sum, { trainer }) => sum + trainer.info.memory.total, 0);
  put("fact-memory", `${bytes(total)}${run.sides.length > 1 ? " for both" : ""}`);
  if (student.seconds > 0) put("fact-speed", `${count(student.tokens / student.seconds)} tokens/s`);
  const left = run.sides.reduce((sum, { trainer, seconds }) => sum + (trainer.totalSteps - trainer.stepsDone) * seconds, 0);
  put("fact-left", student.seconds > 0 ? (left > 0 ? duration(left) : "done") : "–");
}

/** Where it computes, plainly said when that is the CPU. */
export function showDevice(info) {
  const line = element("device-line");
  const gpu = info.kind === "gpu";
  line.classList.toggle("cpu", !gpu);
  line.dataset.kind = info.kind;
  line.textContent = gpu
    ? `Computing on the GPU: ${info.name}${info.software ? " (a software driver, so slowly)" : ""}.`
    : `Computing on the CPU, because ${info.reason.replace(/^it was/, "that was")}: ${info.name}. Everything works, only slower than on a GPU.`;
}

/** What the browser keeps for this page. */
export function showStorage({ usedBytes, quotaBytes, cachedBytes, checkpoints }) {
  const parts = [`Downloads: ${bytes(cachedBytes)}. Runs to go on with: ${checkpoints.filter((name) => !name.endsWith("-twin")).length}.`];
  if (quotaBytes > 0) parts.push(`This site uses ${bytes(usedBytes)} of the ${bytes(quotaBytes)} it may.`);
  put("store-line", parts.join(" "));
}
