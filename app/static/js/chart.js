// A line chart over training steps: zoom by drag, log scale, smoothing, a reading at each step, a table.
// To the keyboard and to screen readers it is a slider over the steps.

import { h, newId, replace, svg } from "./dom.js";
import { compact, number, t } from "./i18n.js";
import { extent, nearest, scale, smooth, thin, ticks } from "./scale.js";

const MARGIN = { top: 10, right: 14, bottom: 26, left: 52 };
const MIN_DRAG_PX = 8;
const MAX_TABLE_ROWS = 200;

export class Chart {
  /**
   * `series`: [{key, label, dots}], drawn in the colours of the classes `.series-{key}`. `height` in px. `controls` adds
   * the log scale and the smoothing. `onZoom` is told the steps shown, or null for all.
   */
  constructor({ label, series, height = 280, controls = false, format = compact, onZoom = () => {} }) {
    Object.assign(this, { label, series, height, format, onZoom });
    this.points = Object.fromEntries(series.map((s) => [s.key, []]));
    this.log = false;
    this.smoothing = 0;
    this.zoom = null;
    this.cursor = null;
    this.clip = newId("clip");
    this.plot = svg("svg.plot", {
      role: "slider", tabindex: 0, "aria-label": label, "aria-valuemin": 0, "aria-valuemax": 0, "aria-valuenow": 0,
      onpointerdown: (e) => this.#grab(e), onpointermove: (e) => this.#move(e), onpointerup: (e) => this.#drop(e),
      onpointercancel: () => { this.dragFrom = undefined; this.#point(null); }, // a finger that scrolls
      onpointerleave: () => this.#point(null), ondblclick: () => this.setZoom(null, true),
      onkeydown: (e) => this.#key(e), onblur: () => this.#point(null),
    });
    this.tip = h("div.tip", { hidden: true, "aria-hidden": "true" });
    this.reset = h("button.quiet.small", { type: "button", hidden: true, onclick: () => this.setZoom(null, true) }, t("chart.reset"));
    this.table = h("details.chart-table", { ontoggle: () => this.#fillTable() }, h("summary", {}, t("chart.table")));
    this.element = h("figure.chart", {},
      h("figcaption", {}, h("strong", {}, label), this.#legend(), controls && this.#controls(), this.reset),
      h("div.plot-box", {}, this.plot, this.tip), this.table);
    new ResizeObserver(() => this.draw()).observe(this.plot.parentNode);
  }

  /** {key: [{x, y}]}, each in order of x. */
  setData(points) {
    this.points = { ...this.points, ...points };
    this.frame ??= requestAnimationFrame(() => { // many points of a replayed stream, one drawing
      this.frame = undefined;
      this.draw();
      this.#fillTable();
    });
  }

  setZoom(range, tell = false) {
    this.zoom = range;
    this.reset.hidden = !range;
    this.draw();
    if (tell) this.onZoom(range);
  }

  draw() {
    const width = this.plot.parentNode.clientWidth;
    if (!width) return;
    const all = this.series.flatMap((s) => this.points[s.key]);
    const xs = this.zoom ?? (all.length ? extent(all.map((p) => p.x), { air: 0.01 }) : [0, 1]);
    const seen = all.filter((p) => p.x >= xs[0] && p.x <= xs[1]);
    const ys = extent(seen.map((p) => p.y), { log: this.log });
    this.x = scale(xs, [MARGIN.left, width - MARGIN.right]);
    this.y = scale(ys, [this.height - MARGIN.bottom, MARGIN.top], this.log);
    this.plot.setAttribute("viewBox", `0 0 ${width} ${this.height}`);
    this.plot.setAttribute("height", this.height);
    this.marks = svg("g.marks");
    replace(this.plot,
      svg("clipPath", { id: this.clip }, svg("rect", {
        x: MARGIN.left, y: 0, width: Math.max(0, width - MARGIN.left - MARGIN.right), height: this.height - MARGIN.bottom + 1,
      })),
      this.#axes(width, xs, ys),
      svg("g", { "clip-path": `url(#${this.clip})` }, this.series.map((s) => this.#line(s, xs, width))),
      this.marks,
      !all.length && svg("text.empty", { x: width / 2, y: this.height / 2, "text-anchor": "middle" }, t("chart.empty")));
    this.steps = [...new Set(all.map((p) => p.x))].sort((a, b) => a - b);
    this.plot.setAttribute("aria-valuemin", this.steps[0] ?? 0);
    this.plot.setAttribute("aria-valuemax", this.steps.at(-1) ?? 0);
    this.#point(this.cursor);
  }

  #axes(width, xs, ys) {
    const bottom = this.height - MARGIN.bottom;
    const yTicks = ticks(ys, Math.max(3, this.height / 50), { log: this.log });
    return svg("g.axes", {},
      yTicks.map((v) => [
        svg("line.grid", { x1: MARGIN.left, x2: width - MARGIN.right, y1: this.y(v), y2: this.y(v) }),
        svg("text", { x: MARGIN.left - 8, y: this.y(v) + 4, "text-anchor": "end" }, this.format(v)),
      ]),
      ticks(xs, Math.max(2, width / 110), { whole: true }).map((v) =>
        svg("text", { x: this.x(v), y: bottom + 18, "text-anchor": "middle" }, number(v))),
      svg("line.axis", { x1: MARGIN.left, x2: width - MARGIN.right, y1: bottom, y2: bottom }));
  }

  #line({ key, dots }, xs, width) {
    const usable = this.points[key].filter((p) => !this.log || p.y > 0);
    // One point beyond each edge, so that a line leaves the picture instead of ending in it.
    const from = Math.max(0, usable.findIndex((p) => p.x >= xs[0]) - 1);
    const past = usable.findIndex((p) => p.x > xs[1]);
    const cut = (points) => thin(past < 0 ? points.slice(from) : points.slice(from, past + 1), width);
    const path = (points) => points.map((p, i) => `${i ? "L" : "M"}${this.x(p.x).toFixed(1)} ${this.y(p.y).toFixed(1)}`).join("");
    const smoothed = this.smoothing > 0 && !dots;
    const shown = cut(usable);
    return [
      svg(`path.line.series-${key}${smoothed ? ".faint" : ""}`, { d: path(shown) }),
      smoothed && svg(`path.line.series-${key}`, { d: path(cut(smooth(usable, this.smoothing))) }),
      (dots || shown.length === 1) && shown.map((p) => svg(`circle.dot.series-${key}`, { cx: this.x(p.x), cy: this.y(p.y), r: 3.5 })),
    ];
  }

  #legend() {
    return this.series.length > 1 && h("span.legend", {}, this.series.map((s) =>
      h("span.key", {}, svg("svg", { width: 18, height: 10, "aria-hidden": "true" },
        svg(`path.line.series-${s.key}`, { d: "M0 5H18" })), s.label)));
  }

  #controls() {
    const log = h("input", { type: "checkbox", onchange: (e) => { this.log = e.target.checked; this.draw(); } });
    const range = h("input", {
      type: "range", min: 0, max: 0.98, step: 0.02, value: 0,
      oninput: (e) => { this.smoothing = Number(e.target.value); this.draw(); },
    });
    return h("span.chart-controls", {}, h("label", {}, log, t("chart.log")), h("label", {}, t("chart.smoothing"), range));
  }

  // What the pointer and the keys do.

  #grab(event) {
    if (event.button !== 0 || !this.steps?.length) return;
    this.dragFrom = this.#at(event);
    this.plot.setPointerCapture(event.pointerId);
  }

  #move(event) {
    const at = this.#at(event);
    if (this.dragFrom === undefined) {
      this.#point(this.#stepAt(at));
      return;
    }
    const [left, right] = [this.dragFrom, at].sort((a, b) => a - b);
    replace(this.marks, svg("rect.drag", { x: left, y: MARGIN.top, width: right - left, height: this.height - MARGIN.top - MARGIN.bottom }));
  }

  #drop(event) {
    const from = this.dragFrom;
    this.dragFrom = undefined;
    if (from === undefined) return;
    const [left, right] = [from, this.#at(event)].sort((a, b) => a - b);
    if (right - left >= MIN_DRAG_PX) this.setZoom([this.x.invert(left), this.x.invert(right)], true);
    else this.#point(this.#stepAt(left));
  }

  #key(event) {
    if (!this.steps?.length) return;
    const [low, high] = this.zoom ?? [-Infinity, Infinity];
    const inside = this.steps.filter((x) => x >= low && x <= high);
    const now = this.cursor === null ? inside.length - 1 : inside.indexOf(this.cursor);
    const page = Math.max(1, Math.round(inside.length / 10));
    const moves = { ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1, PageUp: page, PageDown: -page, Home: -Infinity, End: Infinity };
    if (event.key in moves) {
      this.#point(inside[Math.min(Math.max(now + moves[event.key], 0), inside.length - 1)]);
    } else if (event.key === "+" || event.key === "=" || event.key === "-") {
      const [from, to] = this.zoom ?? [this.steps[0], this.steps.at(-1)];
      const half = ((to - from) / 2) * (event.key === "-" ? 2 : 0.5);
      const centre = this.cursor ?? (from + to) / 2;
      const wide = half * 2 >= this.steps.at(-1) - this.steps[0];
      if (wide || half >= 0.5) this.setZoom(wide ? null : [centre - half, centre + half], true);
    } else if (event.key === "Escape" || event.key === "0") {
      this.setZoom(null, true);
    } else {
      return;
    }
    event.preventDefault();
  }

  #at(event) {
    const box = this.plot.getBoundingClientRect();
    return Math.min(Math.max(event.clientX - box.left, MARGIN.left), box.width - MARGIN.right);
  }

  #stepAt(at) {
    return this.steps?.length ? this.steps[nearest(this.steps.map((x) => ({ x })), this.x.invert(at))] : null;
  }

  #point(step) {
    this.cursor = step ?? null;
    this.tip.hidden = this.cursor === null;
    if (this.dragFrom === undefined) replace(this.marks ?? svg("g"));
    if (this.cursor === null) return;
    const at = this.x(step);
    const read = this.series.map((s) => ({ ...s, point: this.points[s.key].find((p) => p.x === step) })).filter((s) => s.point);
    replace(this.marks,
      svg("line.cursor", { x1: at, x2: at, y1: MARGIN.top, y2: this.height - MARGIN.bottom }),
      read.filter((s) => !this.log || s.point.y > 0).map((s) => svg(`circle.dot.series-${s.key}`, { cx: at, cy: this.y(s.point.y), r: 4 })));
    const lines = read.map((s) => `${s.label} ${this.format(s.point.y)}`);
    replace(this.tip, h("strong", {}, t("chart.step", { step })), lines.map((line) => h("div", {}, line)));
    const room = this.plot.parentNode.clientWidth;
    this.tip.style.left = `${at > room / 2 ? at - this.tip.offsetWidth - 12 : at + 12}px`;
    this.plot.setAttribute("aria-valuenow", step);
    this.plot.setAttribute("aria-valuetext", [t("chart.step", { step }), ...lines].join(", "));
  }

  #fillTable() {
    if (!this.table.open) return;
    const by = this.series.map((s) => new Map(this.points[s.key].map((p) => [p.x, p.y])));
    const every = Math.ceil(this.steps.length / MAX_TABLE_ROWS);
    const rows = this.steps.filter((_, i) => i % every === 0 || i === this.steps.length - 1);
    this.table.querySelector(".scroll")?.remove();
    this.table.append(h("div.scroll", { tabindex: 0, role: "region", "aria-label": this.label }, h("table", {},
      h("caption", {}, every > 1 ? t("chart.thinned", { n: every }) : this.label),
      h("thead", {}, h("tr", {}, h("th", { scope: "col" }, t("chart.steps")), this.series.map((s) => h("th", { scope: "col" }, s.label)))),
      h("tbody", {}, rows.map((x) => h("tr", {}, h("th", { scope: "row" }, number(x)), by.map((m) => h("td", {}, compact(m.get(x))))))))));
  }
}
