// Small live charts: lines or stacked areas over the last minutes, as SVG; the pointer reads values off.

import { h, say, svg } from "./dom.js";
import { KEPT_SECONDS } from "./figures.js";
import { clock } from "./format.js";

const WIDTH = 300;
const HEIGHT = 84;
const TOP = 4; // room for half a line's width

export class Chart {
  #title;
  #format;
  #stacked;
  #series = [];
  #now = 0;
  #picture = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img" });
  #big = h("span", { class: "big" });
  #most = h("span", { class: "most", "aria-hidden": "true" });
  #legend = h("ul", { class: "legend" });
  #at = h("span", { class: "at", "aria-hidden": "true" });

  /** title; format: of values; stacked: areas on each other rather than lines. */
  constructor({ title, format, stacked = false }) {
    this.#title = title;
    this.#format = format;
    this.#stacked = stacked;
    this.element = h(
      "figure",
      { class: `chart panel${stacked ? " stacked" : ""}` },
      h("figcaption", {}, h("span", {}, title), this.#at),
      this.#big,
      h("div", { class: "plot" }, this.#picture, this.#most),
      this.#legend,
    );
    this.#picture.addEventListener("pointermove", (event) => this.#point(event));
    this.#picture.addEventListener("pointerleave", () => this.#tell(null));
  }

  /** Draw: big is the text of the figure just now; series are {label, tone, points: [[time, value or null]]}. */
  update(now, big, series) {
    this.#now = now;
    this.#series = series;
    say(this.#big, big);
    const sums = this.#stacked ? stack(series) : series.map(({ points }) => points.map(([time, value]) => [time, 0, value]));
    const most = nice(Math.max(0, ...sums.flat().map(([, , value]) => value ?? 0)));
    const x = (time) => WIDTH * (1 - (now - time) / KEPT_SECONDS);
    const y = (value) => HEIGHT - (HEIGHT - TOP) * (value / most);
    this.#picture.replaceChildren(
      svg("line", { class: "grid", x1: 0, x2: WIDTH, y1: y(most / 2), y2: y(most / 2) }),
      svg("line", { class: "grid", x1: 0, x2: WIDTH, y1: HEIGHT - 0.5, y2: HEIGHT - 0.5 }),
      ...series.map(({ tone }, index) => this.#draw(sums[index], tone, x, y)),
    );
    this.#picture.setAttribute("aria-label", `${this.#title}, last five minutes; now ${big}`);
    say(this.#most, this.#format(most));
    this.#tell(null);
  }

  #draw(points, tone, x, y) {
    const runs = [];
    let run = [];
    for (const point of points) {
      if (point[2] === null) {
        if (run.length) runs.push(run);
        run = [];
      } else run.push(point);
    }
    if (run.length) runs.push(run);
    const at = (time, value) => `${x(time).toFixed(1)} ${y(value).toFixed(1)}`;
    const line = (each) => `M${each.map(([time, , value]) => at(time, value)).join("L")}${each.length === 1 ? "h0.1" : ""}`;
    const area = (each) => `${line(each)}L${[...each].reverse().map(([time, base]) => at(time, base)).join("L")}Z`;
    return svg(
      "g",
      { class: `series ${tone}` },
      svg("path", { class: "area", d: runs.map(area).join("") }),
      svg("path", { class: "line", d: runs.map(line).join("") }),
    );
  }

  #point(event) {
    const box = this.#picture.getBoundingClientRect();
    const time = this.#now - KEPT_SECONDS * (1 - (event.clientX - box.left) / box.width);
    this.#tell(time);
  }

  /** The legend, with the values at a time; null: the last ones. */
  #tell(time) {
    const nearest = (points) => {
      if (time === null) return points.at(-1);
      return points.reduce((best, each) => (Math.abs(each[0] - time) < Math.abs(best[0] - time) ? each : best), points[0]);
    };
    const told = this.#series.map(({ label, tone, points }) => ({ label, tone, point: nearest(points) }));
    say(this.#at, time === null || !told[0]?.point ? "" : clock(told[0].point[0]));
    while (this.#legend.children.length > told.length) this.#legend.lastChild.remove();
    told.forEach(({ label, tone, point }, index) => {
      let item = this.#legend.children[index];
      if (!item) {
        item = h("li", {}, h("i", {}), h("span", {}), h("b", {}));
        this.#legend.append(item);
      }
      item.className = tone;
      say(item.children[1], label);
      say(item.children[2], this.#format(point ? point[1] : null));
    });
  }
}

/** Series on each other: [time, bottom, top]. */
function stack(series) {
  const below = [];
  return series.map(({ points }) =>
    points.map(([time, value], index) => {
      const bottom = below[index] ?? 0;
      if (value === null) return [time, bottom, null];
      below[index] = bottom + value;
      return [time, bottom, below[index]];
    }),
  );
}

/** The next number that people find round. */
function nice(value) {
  if (value <= 0) return 1;
  const size = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 2.5, 5, 10].find((step) => step * size >= value) * size;
}
