// A job's curves: the loss large, the rest small below it, all showing the same steps.

import { Chart } from "../chart.js";
import { h } from "../dom.js";
import { t } from "../i18n.js";

const SMALL = ["learning_rate", "grad_norm", "tokens_per_second", "memory_mb"];

export class JobCharts {
  constructor() {
    const onZoom = (range) => this.charts.forEach((chart) => chart.setZoom(range));
    this.loss = new Chart({
      label: t("curve.loss"), controls: true, onZoom,
      series: [{ key: "train", label: t("curve.train") }, { key: "eval", label: t("curve.eval"), dots: true }],
    });
    this.small = SMALL.map((key) => [key, new Chart({ label: t(`curve.${key}`), height: 130, onZoom, series: [{ key, label: t(`curve.${key}`) }] })]);
    this.charts = [this.loss, ...this.small.map(([, chart]) => chart)];
    this.rest = h("details.group.small-charts", {}, h("summary", {}, t("curve.more")), h("div.chart-grid", {}, this.small.map(([, c]) => c.element)));
    this.element = h("section.curves", { "aria-label": t("curve.title") }, this.loss.element, h("p.hint", {}, t("curve.help")), this.rest);
  }

  /** `curve`: {train, eval} of GET /jobs/{id}. */
  show(curve, status) {
    if (status) this.element.hidden = status === "queued" && !curve.train.length;
    this.loss.setData({ train: points(curve.train, "loss"), eval: points(curve.eval, "loss") });
    for (const [key, chart] of this.small) {
      const found = points(curve.train, key);
      chart.element.hidden = !found.length;
      chart.setData({ [key]: found });
    }
  }
}

const points = (rows, key) => rows.filter((r) => r[key] !== null && r[key] !== undefined).map((r) => ({ x: r.step, y: r[key] }));
