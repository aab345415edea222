// What the page tells its visitor: the state in a polite live region, errors in an assertive one, with what to do.

const element = (id) => document.getElementById(id);

/** By an error's kind: a title, and what can be done about it. */
const ADVICE = {
  input: ["This recipe cannot be followed", "Change the recipe or the files it names, then start again."],
  network: ["The server cannot be reached", "What was learned is kept. Check the connection, then press the button again."],
  damaged: ["A file arrived damaged", "Nothing of it was used. Try again; if it stays so, the file on the server is not the one that was captured."],
  quota: ["The browser’s storage is full", "Clear downloads below or free space on this device, then go on. The run itself is still in memory."],
  "no-gpu": ["This browser offers no GPU", "Choose “the CPU” under “Compute on”, or try a browser that has WebGPU."],
  device: ["The GPU cannot be used", "Choose “the CPU” under “Compute on”, which needs no GPU, or try another browser."],
  "device-lost": ["The GPU was lost", "What was saved is kept: press the button to go on from there."],
  "not-finite": ["The loss is no longer a number", "The last checkpoint is kept. Start over with a lower learning rate."],
  cancelled: ["Cancelled", "Nothing was lost."],
  internal: ["Something in potstill failed", "What was saved is kept: reload the page to go on. The message below belongs in a bug report."],
};

/** One line on what happens now. Screen readers hear it when it changes. */
export function status(text) {
  const line = element("status");
  if (line.textContent !== text) line.textContent = text;
}

/** Shows an error of any origin. */
export function alarm(error) {
  const kind = error?.kind in ADVICE ? error.kind : "internal";
  const [title, advice] = ADVICE[kind];
  const box = element("alert");
  const strong = document.createElement("strong");
  strong.textContent = title;
  const lines = [advice, error?.message ?? String(error)].map((text) => {
    const line = document.createElement("p");
    line.textContent = text;
    return line;
  });
  lines[1].className = "note";
  box.dataset.kind = kind;
  box.replaceChildren(strong, ...lines);
  box.hidden = false;
}

/** Takes the last error away. */
export function calm() {
  element("alert").hidden = true;
  element("alert").replaceChildren();
}

/** What is allowed but worth knowing: a list, said once each. */
export function warn(texts) {
  const list = element("warnings");
  const distinct = [...new Set(texts)];
  if (distinct.join() === [...list.children].map(({ textContent }) => textContent).join()) return;
  list.replaceChildren(...distinct.map((text) => {
    const item = document.createElement("li");
    item.textContent = text;
    return item;
  }));
  list.hidden = list.children.length === 0;
}
