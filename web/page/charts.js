// The live curves: three small uPlot charts with one look, redrawn a few times a second at most.

import uPlot from "../vendor/uPlot.esm.js";

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
/** Steps over which a noisy curve is smoothed. */
const SMOOTH = 15;

function options(element, smooth) {
  const axis = {
    stroke: () => colour("soft"), font: "12px system-ui, sans-serif",
    grid: { stroke: () => colour("grid"), width: 1 }, ticks: { show: false },
  };
  const line = (name, dash) => ({ stroke: () => colour(name), width: 2, dash, spanGaps: true, points: { show: !smooth, size: 5 } });
  const raw = (name) => ({ stroke: () => `color-mix(in srgb, ${colour(name)} 28%, transparent)`, width: 1, spanGaps: true, points: { show: false } });
  return {
    width: element.clientWidth || 300,
    height: element.clientHeight || 200,
    legend: { show: false },
    cursor: { show: false },
    scales: { x: { time: false } },
    axes: [{ ...axis, size: 26 }, { ...axis, size: 42, values: (_, ticks) => ticks.map((tick) => String(+tick.toFixed(2))) }],
    series: [{}, line("student"), line("twin", [6, 4]), ...(smooth ? [raw("student"), raw("twin")] : [])],
  };
}

/** Exponentially smoothed, bias corrected, where a value is. */
function smoothed(values) {
  const keep = 1 - 1 / SMOOTH;
  let [mean, weight] = [0, 0];
  return values.map((value) => {
    if (value == null) return value;
    mean = keep * mean + (1 - keep) * value;
    weight = keep * weight + (1 - keep);
    return mean / weight;
  });
}

export class Chart {
  /** `title` begins the description that stands for the picture. `smooth`: draw a noisy curve's mean over it. */
  constructor(element, title, smooth) {
    Object.assign(this, { element, title, smooth, points: [[], []], steps: 0, wanted: false, drawn: 0 });
    this.plot = new uPlot(options(element, smooth), [[0], [null], [null], ...(smooth ? [[null], [null]] : [])], element);
    new ResizeObserver(() => {
      this.plot.setSize({ width: element.clientWidth, height: element.clientHeight });
    }).observe(element);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.plot.redraw(false));
  }

  /** Points [step, value] of student and twin, of a run of `steps` steps. Drawn with the next frame that is due. */
  set(student, twin, steps) {
    this.points = [student, twin];
    this.steps = steps;
    if (this.wanted) return;
    this.wanted = true;
    const wait = Math.max(0, this.drawn + 300 - performance.now());
    setTimeout(() => requestAnimationFrame(() => this.draw()), wait);
  }

  draw() {
    this.wanted = false;
    this.drawn = performance.now();
    const steps = [...new Set(this.points.flat().map(([step]) => step))].sort((a, b) => a - b);
    const at = new Map(steps.map((step, i) => [step, i]));
    const columns = this.points.map((points) => {
      const column = new Array(steps.length).fill(null);
      for (const [step, value] of points) column[at.get(step)] = value;
      return column;
    });
    const data = this.smooth ? [steps, ...columns.map(smoothed), ...columns] : [steps, ...columns];
    this.plot.batch(() => {
      this.plot.setData(data);
      this.plot.setScale("x", { min: 0, max: Math.max(this.steps, 1) });
    });
    this.element.setAttribute("aria-label", this.describe());
  }

  describe() {
    const names = ["student", "twin"];
    const parts = this.points.map((points, i) => {
      if (points.length === 0) return null;
      const [first, last] = [points[0], points.at(-1)];
      return `${names[i]} from ${first[1].toFixed(2)} at step ${first[0]} to ${last[1].toFixed(2)} at step ${last[0]}`;
    });
    return `${this.title}: ${parts.filter(Boolean).join("; ") || "nothing yet"}`;
  }
}
