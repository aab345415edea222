// A run as the page shows it: the student and its twin by turns, whichever is behind, measured at the same steps, with
// words of the student and the teacher in between. All work is the worker's; here are only turns and records.

import { checkpointName, rewind } from "./kept.js";
import { twinOf } from "./recipes.js";

/** Seconds that one call should take: short enough to stop soon, long enough that calls cost nothing. */
const TURN = 0.25;
/** The same draws each time, so that what changes is the student. */
const SPEECH = { maxTokens: 48, temperature: 0.7, topK: 40, seed: 7 };
/** After these a run can go on with the trainers it has; after others it begins at its last checkpoint. */
const PASSING = new Set(["network", "damaged", "quota"]);

export class Run {
  /**
   * `record` is kept.js's, `client` the worker's. `tell` hears what changes: { status, state, change, event, failure }.
   * States: opening, running, pausing, paused, ending, ended, failed.
   */
  constructor(client, record, tell) {
    Object.assign(this, { client, record, tell, sides: [], state: "opening", wants: "run" });
    /** Fires when words that are being made should end soon, and when what is being opened is no longer wanted. */
    this.hurry = new AbortController();
    this.cancel = new AbortController();
    this.base = document.baseURI;
  }

  get student() {
    return this.sides[0]?.trainer;
  }

  /** Everything, to the end or a failure. */
  async go() {
    try {
      await this.open();
      await this.turns();
      await this.end();
    } catch (error) {
      await this.fail(error);
    }
  }

  set(state) {
    this.state = state;
    this.tell.state(state);
  }

  async open() {
    this.tell.status("Preparing the student …");
    const student = await this.side("student", this.record.recipe);
    this.record.totalSteps = student.trainer.totalSteps;
    this.record.step = student.trainer.stepsDone;
    if (this.record.words.before === null) {
      await this.measure(student);
      this.record.words.before = this.record.words.now;
    }
    this.set("running");
    this.tell.status("Learning");
    if (student.trainer.stepsDone < student.trainer.totalSteps && this.wants === "run") await this.turn(student, 1);
    const twin = twinOf(this.record.recipe);
    if (twin && this.wants !== "stop") await this.openTwin(twin);
    if (this.record.teacher && this.record.words.teacher === null && this.wants !== "stop") await this.listenToTeacher();
  }

  async openTwin(recipe) {
    try {
      const side = await this.side("twin", recipe);
      if (side.record.evaluations.length === 0) await this.measure(side);
    } catch (error) {
      // A stop in between: the student is there.
      if (error.kind !== "cancelled") throw error;
    }
  }

  /** Opens one of the two, from its checkpoint if there is one. */
  async side(name, recipe) {
    const record = this.record[name];
    const options = {
      name: checkpointName(this.record.id, name),
      baseUrl: this.base,
      signal: this.cancel.signal,
      onProgress: ({ what, done, total }) => this.tell.progress(what, done, total),
      onEvent: (event) => {
        if (event.type === "device-lost") rewind(record, event.step);
        this.tell.event(event);
      },
    };
    const trainer = await this.client.createTrainer({ ...recipe, device: this.record.device }, options);
    rewind(record, trainer.stepsDone);
    const side = { name, trainer, record, seconds: 0, tokens: 0 };
    this.sides.push(side);
    this.tell.change();
    return side;
  }

  async turns() {
    for (;;) {
      if (this.wants === "pause") await this.hold();
      const unfinished = this.sides.filter(({ trainer }) => trainer.stepsDone < trainer.totalSteps);
      if (this.wants === "stop" || unfinished.length === 0) return;
      unfinished.sort((a, b) => a.trainer.stepsDone - b.trainer.stepsDone);
      const [side] = unfinished;
      await this.passing(() => this.turn(side, Math.max(1, Math.min(25, Math.round(TURN / (side.seconds || TURN))))));
    }
  }

  /** Does something; what fails in passing is told, and done again when the visitor says so. */
  async passing(work) {
    try {
      await work();
    } catch (error) {
      if (!PASSING.has(error.kind)) throw error;
      this.tell.failure(error);
      this.wants = "pause";
    }
  }

  /** Up to `count` steps of one side, not beyond the next measurement; then that. */
  async turn(side, count) {
    const { trainer, record } = side;
    const every = this.record.recipe.training_args?.eval_steps ?? Math.max(1, Math.ceil(trainer.totalSteps / 10));
    const next = Math.min(trainer.totalSteps, (Math.floor(trainer.stepsDone / every) + 1) * every);
    for (const report of await trainer.step(Math.min(count, next - trainer.stepsDone))) {
      record.losses.push([report.step, report.loss]);
      side.seconds = side.seconds ? 0.8 * side.seconds + 0.2 * report.seconds : report.seconds;
      side.tokens = report.tokens;
    }
    if (side.name === "student") this.record.step = trainer.stepsDone;
    this.tell.change();
    if (trainer.stepsDone === next) await this.measure(side);
  }

  /** Held-out numbers, and the student's words, unless this step has them already. */
  async measure(side) {
    const { trainer, record } = side;
    if (record.evaluations.at(-1)?.step !== trainer.stepsDone) {
      const evaluation = await trainer.evaluate();
      if (evaluation) record.evaluations.push(evaluation);
      this.tell.change();
    }
    if (side.name === "student") await this.speak();
  }

  /** The student's words. They come whole: what is drawn at each word costs more than it tells. */
  async speak() {
    try {
      this.record.words.now = await this.student.generate(this.record.prompt, { ...SPEECH, signal: this.hurry.signal });
    } catch (error) {
      if (error.kind !== "cancelled") throw error;
    }
    this.tell.change();
  }

  async listenToTeacher() {
    const { teacher, device, prompt, words } = this.record;
    let model;
    try {
      // A folder of the visitor's own is known by its name, all others by their address.
      const source = teacher.startsWith("own/") || teacher === "own" ? teacher : new URL(teacher, this.base).href;
      model = await this.client.openModel(source, device, { signal: this.cancel.signal });
      words.teacher = await model.generate(prompt, { ...SPEECH, signal: this.hurry.signal });
    } catch (error) {
      // Its words are an extra: the run does without.
      if (error.kind !== "cancelled") this.tell.event({ type: "no-teacher", reason: error.message });
    } finally {
      await model?.free();
    }
    this.tell.change();
  }

  /** Asks for a pause; the state is `paused` when everything is at rest and saved. */
  async pause() {
    this.wants = "pause";
    this.set("pausing");
    this.tell.status("Pausing …");
    this.interrupt();
    await Promise.all(this.sides.map(({ trainer }) => trainer.pause()));
  }

  async hold() {
    await this.save();
    await Promise.all(this.sides.map(({ trainer }) => trainer.resume()));
    this.set("paused");
    const waiting = new Promise((resolve) => (this.wake = resolve));
    await waiting;
    if (this.wants === "run") this.set("running");
  }

  /** Goes on after a pause. */
  resume() {
    this.wants = "run";
    this.tell.status("Learning");
    this.wake?.();
  }

  /** Ends here: the student is measured, saved and stays open for download. */
  async stop() {
    this.wants = "stop";
    this.set("ending");
    this.tell.status("Stopping …");
    this.cancel.abort();
    this.interrupt();
    this.wake?.();
    await Promise.all(this.sides.map(({ trainer }) => trainer.pause()));
  }

  interrupt() {
    this.hurry.abort();
    this.hurry = new AbortController();
  }

  /** Checkpoints of both sides, now. */
  async save() {
    for (const { trainer } of this.sides) await this.passing(() => trainer.checkpoint());
  }

  async end() {
    this.set("ending");
    await Promise.all(this.sides.map(({ trainer }) => trainer.resume()));
    for (const side of this.sides) await this.measure(side);
    this.record.finished = this.sides.every(({ trainer }) => trainer.stepsDone >= trainer.totalSteps);
    this.record.words.after = this.record.words.now;
    this.tell.change();
    await this.save();
    this.set("ended");
  }

  async fail(error) {
    // A stop while things were being opened.
    const asked = error.kind === "cancelled" && this.wants === "stop";
    if (!asked) this.tell.failure(error);
    await this.free();
    this.set(asked ? "ended" : "failed");
  }

  /** Gives all memory back. */
  async free() {
    const sides = this.sides.splice(0);
    // After a failure of the worker itself there is nothing left to free.
    await Promise.allSettled(sides.map(({ trainer }) => trainer.free()));
  }
}
