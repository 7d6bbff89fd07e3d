// Numbers, times and names, as people read them.

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const oneDigit = new Intl.NumberFormat("en", { maximumFractionDigits: 1 });
const twoDigits = new Intl.NumberFormat("en", { maximumFractionDigits: 2 });

/** 1,234 */
export const count = (value) => (value === null || value === undefined ? "–" : whole.format(value));

/** A rate or another number, as exact as its size asks for. */
export function number(value) {
  if (value === null || value === undefined) return "–";
  const size = Math.abs(value);
  return (size >= 100 ? whole : size >= 10 ? oneDigit : twoDigits).format(value);
}

/** "1 session", "12 sessions" */
export const plural = (value, one, many = `${one}s`) => `${count(value)} ${value === 1 ? one : many}`;

/** 1.5 MiB */
export function octets(value) {
  if (value === null || value === undefined) return "–";
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  let size = value;
  while (size >= 1024 && unit < units.length - 1) {
    size /= 1024;
    unit += 1;
  }
  return `${unit === 0 ? whole.format(size) : number(size)} ${units[unit]}`;
}

/** How long, short: 820 µs, 35 ms, 4.2 s */
export function latency(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  if (seconds < 0.001) return `${whole.format(seconds * 1e6)} µs`;
  if (seconds < 1) return `${number(seconds * 1e3)} ms`;
  return `${number(seconds)} s`;
}

/** How long, in two units: 3 d 4 h, 12 min 5 s */
export function duration(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  const all = Math.max(0, Math.round(seconds));
  const parts = [
    [Math.floor(all / 86400), "d"],
    [Math.floor(all / 3600) % 24, "h"],
    [Math.floor(all / 60) % 60, "min"],
    [all % 60, "s"],
  ];
  const first = parts.findIndex(([value]) => value > 0);
  if (first < 0) return "0 s";
  return parts
    .slice(first, first + 2)
    .filter(([value]) => value > 0)
    .map(([value, unit]) => `${value} ${unit}`)
    .join(" ");
}

/** A point of time, in the reader's zone; the day only where it is not today. */
export function clock(unix) {
  if (unix === null || unix === undefined) return "–";
  const then = new Date(unix * 1000);
  const time = then.toLocaleTimeString("en-GB");
  if (then.toDateString() === new Date().toDateString()) return time;
  return `${then.getFullYear()}-${two(then.getMonth() + 1)}-${two(then.getDate())} ${time}`;
}

const two = (value) => String(value).padStart(2, "0");

// Controls, and characters that turn or hide what stands beside them.
const UNSEEN = /[\p{Cc}\p{Cf}\p{Cs}\p{Co}\p{Zl}\p{Zp}]/gu;

/** A text from a stranger, with all that does not show made visible. */
export function shown(text) {
  return String(text).replace(UNSEEN, (character) => `\\u{${character.codePointAt(0).toString(16)}}`);
}

/** Any value of a document, on one line. */
export function plain(value) {
  if (value === null || value === undefined) return "null";
  return shown(typeof value === "object" ? JSON.stringify(value) : value);
}
