// The page's half of the proxy: the surface of potstill.js, served by a dedicated worker, so that the page stays free.
//
//     import { connect } from "potstill/client";
//     const potstill = await connect();
//     const trainer = await potstill.createTrainer(recipe, { name: "mine", onEvent: console.log });
//     for (let reports; (reports = await trainer.step(10)).length; ) console.log(reports.at(-1).loss);
//     const student = await trainer.save("zip");
//
// Every function and method returns a promise. Readonly properties (trainer.stepsDone) are as they were when the last
// call on their object was answered. Callbacks are called on the page; an AbortSignal of the page works across.

/** What the module, its worker or the way there reports: `kind` says what to do about it, `message` what went wrong. */
export class PotstillError extends Error {
  constructor(kind, message) {
    super(message);
    this.name = "PotstillError";
    this.kind = kind;
  }
}

const FUNCTIONS = [
  "putFiles", "removeFiles", "deviceInfo", "openShards", "openModel", "createTrainer", "mergeModels",
  "storage", "clearStorage",
];
const METHODS = {
  Trainer: ["step", "evaluate", "generate", "checkpoint", "pause", "resume", "save", "loseDevice", "free"],
  Model: ["generate", "logits", "free"],
};

/** One worker and the calls under way in it. */
class Channel {
  constructor(worker) {
    this.worker = worker;
    /** { resolve, reject, target, done } by the call's id. */
    this.calls = new Map();
    this.callbacks = new Map();
    this.last = 0;
    /** Why no further call can be answered. */
    this.closed = null;
    worker.onmessage = ({ data }) => this.receive(data);
    worker.onerror = (event) => {
      event.preventDefault();
      const reason = event.message || "its script could not be loaded or does not run here";
      this.close(new PotstillError("internal", `potstill's worker failed: ${reason}`));
    };
    this.ready = new Promise((resolve, reject) => (this.started = { resolve, reject }));
    // Who awaits a call hears of it there.
    this.ready.catch(() => {});
  }

  receive(data) {
    if (data.ready === true) return this.started.resolve();
    if (data.ready === false) {
      const { message } = data.error;
      return this.close(new PotstillError("network", `potstill's module could not be started: ${message}`));
    }
    if (data.callback !== undefined) return this.callbacks.get(data.callback)?.(...data.args);
    const call = this.calls.get(data.id);
    if (!call) return undefined;
    this.calls.delete(data.id);
    call.done();
    if (data.state && call.proxy) Object.assign(call.proxy, data.state);
    if (!data.error) return call.resolve(this.unpack(data.result));
    const error = new PotstillError(data.error.kind, data.error.message);
    if (data.error.stack) error.stack = data.error.stack;
    return call.reject(error);
  }

  unpack(result) {
    return result.kind ? this.proxy(result) : result.value;
  }

  /** What stands here for a Trainer or a Model there. */
  proxy({ handle, kind, state }) {
    const proxy = { ...state };
    for (const method of METHODS[kind]) {
      const value = (...args) => this.call(handle, method, args, proxy);
      Object.defineProperty(proxy, method, { value });
    }
    return proxy;
  }

  /** One argument as data: functions and AbortSignals, by themselves or in an options object, become numbers. */
  pack(argument, done) {
    const follow = (signal) => {
      const number = ++this.last;
      const abort = () => this.worker.postMessage({ abort: number });
      if (signal.aborted) abort();
      signal.addEventListener("abort", abort, { once: true });
      done.push(() => signal.removeEventListener("abort", abort));
      return number;
    };
    if (argument instanceof AbortSignal) return { signal: follow(argument) };
    if (argument === null || Object.getPrototypeOf(Object(argument)) !== Object.prototype) return { value: argument };
    const packed = { value: {}, signals: {}, callbacks: {} };
    for (const [name, value] of Object.entries(argument)) {
      if (value instanceof AbortSignal) {
        packed.signals[name] = follow(value);
      } else if (typeof value === "function") {
        const number = ++this.last;
        this.callbacks.set(number, value);
        // A trainer calls its callback as long as it lives; all others belong to their call.
        if (name !== "onEvent") done.push(() => this.callbacks.delete(number));
        packed.callbacks[name] = number;
      } else {
        packed.value[name] = value;
      }
    }
    return packed;
  }

  call(target, method, args, proxy) {
    if (this.closed) return Promise.reject(this.closed);
    return new Promise((resolve, reject) => {
      const done = [];
      const id = ++this.last;
      const message = { id, target, method, args: args.map((argument) => this.pack(argument, done)) };
      this.calls.set(id, { resolve, reject, proxy, done: () => done.forEach((undo) => undo()) });
      this.worker.postMessage(message);
    });
  }

  close(reason) {
    if (this.closed) return;
    this.closed = reason;
    this.worker.terminate();
    this.started.reject(reason);
    for (const call of this.calls.values()) {
      call.done();
      call.reject(reason);
    }
    this.calls.clear();
    this.callbacks.clear();
  }
}

/** Starts the worker; resolves when the module runs in it. */
export async function connect({ workerUrl = new URL("./worker.js", import.meta.url) } = {}) {
  const channel = new Channel(new Worker(workerUrl, { type: "module", name: "potstill" }));
  await channel.ready;
  const client = {
    close: () => channel.close(new PotstillError("cancelled", "the connection to potstill's worker was closed")),
  };
  for (const name of FUNCTIONS) client[name] = (...args) => channel.call(0, name, args);
  return client;
}
