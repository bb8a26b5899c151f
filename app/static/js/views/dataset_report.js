// What an upload held: how much, how long, what is odd, which lines are faulty.

import { h } from "../dom.js";
import { has, number, t } from "../i18n.js";

/** The report of a dataset that was taken. */
export function reportPanel(report) {
  const counts = ["unusable", "duplicates", "empty", "too_long"].filter((name) => report[name] > 0);
  return h("div.report", {},
    report.tokens && h("dl.figures", {}, ["min", "median", "p95", "max", "total"].map((name) =>
      h("div", {}, h("dt", {}, t(`report.tokens.${name}`)), h("dd", {}, number(report.tokens[name]))))),
    counts.length > 0 && h("p", {}, counts.map((name) => h("span.tag", {}, t(`report.${name}`, { n: report[name] })))),
    report.warnings.length > 0 && h("details.warnings", { open: report.warnings.length <= 4 },
      h("summary", {}, t("report.warnings", { n: report.warnings.length })),
      h("ul", {}, report.warnings.map(warning))),
    report.errors.length > 0 && faults(report));
}

/** {code, message, count, lines}: of `count` rows the message is what they do; of the whole file (0) it is a sentence. */
function warning({ code, message, count, lines = [] }) {
  const key = `warning.${code}`;
  const said = has(key) ? t(key, { n: count }) : count ? t("report.rows", { n: count, message }) : message;
  const more = count > lines.length ? ", …" : "";
  return h("li", { title: message }, said, lines.length > 0 && h("span.hint", {}, ` ${t("report.lines", { n: count, lines: lines.join(", ") + more })}`));
}

/** The faulty lines as a table. */
export function faults({ errors, unusable }) {
  if (!errors.length) return null;
  return h("div.faults", {},
    h("h3", {}, t("report.faults", { n: unusable || errors.length })),
    unusable > errors.length && h("p.hint", {}, t("report.first", { n: errors.length })),
    h("div.scroll", { tabindex: 0, role: "region", "aria-label": t("report.faults", { n: unusable || errors.length }) },
      h("table", {}, h("thead", {}, h("tr", {}, ["line", "column", "what", "advice"].map((c) => h("th", { scope: "col" }, t(`report.${c}`))))),
        h("tbody", {}, errors.map((e) => h("tr", {}, h("th", { scope: "row" }, number(e.line)), h("td", {}, e.column ?? ""),
          h("td", {}, e.message), h("td", {}, has(`fault.${e.code}`) ? t(`fault.${e.code}`) : "")))))));
}
