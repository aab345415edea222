// Numbers as people read them.

const whole = new Intl.NumberFormat("en");

/** 12345 as "12,345". */
export const count = (n) => whole.format(Math.round(n));

/** Bytes in the unit that fits, powers of 1000. */
export function bytes(n) {
  const units = ["bytes", "kB", "MB", "GB", "TB"];
  let unit = 0;
  while (n >= 1000 && unit < units.length - 1) {
    n /= 1000;
    unit += 1;
  }
  return `${unit === 0 || n >= 100 ? Math.round(n) : n.toFixed(1)} ${units[unit]}`;
}

/** Parameters: "155 thousand", "1.2 million". */
export function parameters(n) {
  return n >= 1e6 ? `${(n / 1e6).toFixed(1)} million` : `${count(n / 1e3)} thousand`;
}

/** Seconds as "12 s" or "3 min 05 s". */
export function duration(seconds) {
  const s = Math.round(seconds);
  if (s < 60) return `${s} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min ${String(s % 60).padStart(2, "0")} s`;
  return `${Math.floor(s / 3600)} h ${String(Math.floor((s % 3600) / 60)).padStart(2, "0")} min`;
}
