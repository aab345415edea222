// What the page keeps of a run between visits, beside the checkpoints in the browser's private storage: curves, words and
// which recipe it was. The trainer's own state is in the checkpoints alone.

const KEY = "potstill.run";

/** A run that has not begun. */
export function blank(choice) {
  return {
    ...choice, // id, title, recipe, prompt, teacher, device
    student: { losses: [], evaluations: [] },
    twin: { losses: [], evaluations: [] },
    // null: not asked yet; who was asked may have said nothing.
    words: { before: null, now: null, after: null, teacher: null },
    step: 0,
    totalSteps: 0,
    finished: false,
  };
}

/** The run of an earlier visit; null when there is none, or none that this version of the page understands. */
export function load() {
  try {
    const run = JSON.parse(localStorage.getItem(KEY));
    return run && run.student?.losses && run.words ? run : null;
  } catch {
    return null;
  }
}

/** Keeps a run. Where storage is full or forbidden, the page shows the run without keeping it. */
export function save(run) {
  try {
    localStorage.setItem(KEY, JSON.stringify(run));
  } catch {
    forget();
  }
}

/** Keeps nothing. */
export function forget() {
  try {
    localStorage.removeItem(KEY);
  } catch {
    // Storage is forbidden: there is nothing to forget.
  }
}

/** Forgets what came after `step` on one side: training goes on from a checkpoint, which may be older than the page's curves. */
export function rewind(side, step) {
  side.losses = side.losses.filter(([at]) => at <= step);
  side.evaluations = side.evaluations.filter((evaluation) => evaluation.step <= step);
}

/** The name of a side's checkpoints. */
export const checkpointName = (id, side) => `page-${id}-${side}`;
