// The worker's half of the proxy: loads the module, and does what client.js asks for.
//
// A request is { id, target, method, args }. `target` is 0 for the module's functions, else the handle of a Trainer or
// Model that an earlier call returned. The answer is { id, result } or { id, error }, beside `state`: the readonly
// properties of the target as they are now. While a call runs, { callback, args } carries what the module tells of
// its progress, and { abort } from the page fires a signal here.

import init, * as potstill from "./potstill.js";

/** Trainers and models by their handles. */
const objects = new Map();
/** What stands for the page's AbortSignals, by their numbers, while a call uses them. */
const controllers = new Map();
let lastHandle = 0;

/** The readonly properties of a class of the module, by its prototype. */
function snapshot(object) {
  const state = {};
  const properties = Object.getOwnPropertyDescriptors(Object.getPrototypeOf(object));
  for (const [name, { get }] of Object.entries(properties)) {
    if (get && !name.startsWith("__")) state[name] = get.call(object);
  }
  return state;
}

/** A value as the page sent it, with working callbacks and signals; those that it used are added to `used`. */
function unpack({ value, signal, signals = {}, callbacks = {} }, used) {
  const real = (number) => {
    if (!controllers.has(number)) controllers.set(number, new AbortController());
    used.push(number);
    return controllers.get(number).signal;
  };
  if (signal !== undefined) return real(signal);
  for (const [name, number] of Object.entries(signals)) value[name] = real(number);
  for (const [name, number] of Object.entries(callbacks)) {
    value[name] = (...args) => self.postMessage({ callback: number, args });
  }
  return value;
}

/** What can be sent of a result: an object of the module stays here, and its handle goes. */
function pack(result) {
  for (const kind of ["Trainer", "Model"]) {
    if (potstill[kind] && result instanceof potstill[kind]) {
      const handle = ++lastHandle;
      objects.set(handle, result);
      return { handle, kind, state: snapshot(result) };
    }
  }
  return { value: result };
}

/** An error as plain data. What is not of the module's own making is a fault of the program: "internal". */
function describe(error) {
  const kind = error?.name === "PotstillError" ? error.kind : "internal";
  return { kind, message: String(error?.message ?? error), stack: error?.stack };
}

async function answer({ id, target, method, args }) {
  const used = [];
  const object = target === 0 ? potstill : objects.get(target);
  try {
    if (object === undefined) throw new Error(`${method}() of something that was freed`);
    const result = pack(await object[method](...args.map((arg) => unpack(arg, used))));
    if (method === "free") objects.delete(target);
    const state = objects.has(target) ? snapshot(object) : undefined;
    self.postMessage({ id, result, state });
  } catch (error) {
    // A call that fails may have moved things too: a cancelled step() has taken steps.
    let state;
    try {
      if (objects.has(target)) state = snapshot(object);
    } catch {
      // A module that fails so thoroughly has no state to tell of; the error itself is what matters.
    }
    self.postMessage({ id, error: describe(error), state });
  } finally {
    for (const number of used) controllers.delete(number);
  }
}

// Messages that come while the module loads are kept by this promise, in their order.
const ready = init();
ready.then(
  () => self.postMessage({ ready: true }),
  (error) => self.postMessage({ ready: false, error: describe(error) }),
);

self.onmessage = ({ data }) => {
  if (data.abort !== undefined) {
    // One that no call uses yet is remembered, for its call may still be on its way.
    if (!controllers.has(data.abort)) controllers.set(data.abort, new AbortController());
    controllers.get(data.abort).abort();
  } else {
    ready.then(() => answer(data), () => {});
  }
};
