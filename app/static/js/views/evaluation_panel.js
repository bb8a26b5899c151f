// The verdict on a version: scores beside each other, what was decided and why, and rows to judge for oneself.

import { h, newId } from "../dom.js";
import { number, t } from "../i18n.js";
import { note } from "../notices.js";

const NUM_SHOWN = 3; // the others are one click away

/** `evaluation` of a job or a seal; older seals hold less of it. The samples are apart: see samplesPanel. */
export function evaluationPanel(evaluation, { adapter, adapter_version: version } = {}) {
  const titleId = "verdict-title";
  return [
    h("h2", { id: titleId }, t("verdict.title")),
    evaluation.reason && verdict(evaluation),
    h("div.scroll", { tabindex: 0, role: "region", "aria-labelledby": titleId }, scoreTable(evaluation, adapter && `${adapter}@${version}`)),
    h("p.hint", {}, [
      t("verdict.rows", { n: evaluation.rows }),
      evaluation.gain !== undefined && t("verdict.gain", { gain: signed(evaluation.gain), metric: metricName(evaluation.metric), against: evaluation.against }),
      evaluation.p_value !== null && evaluation.p_value !== undefined && t("verdict.p", { p: number(evaluation.p_value, 3) }),
    ].filter(Boolean).join(" ")),
  ];
}

function verdict({ promoted, reason }) {
  const said = t(promoted ? "verdict.promoted" : "verdict.kept");
  const repeats = reason.startsWith(said.slice(0, -1)); // the server says it in the same words, if in English
  return note(promoted ? "success" : "warning", !repeats && h("strong", {}, said, " "), reason);
}

/** Held-out rows as each translator answers them, and how the scores were computed; empty if nothing is known. */
export function samplesPanel({ samples = [], signatures = {} }) {
  const more = samples.slice(NUM_SHOWN);
  return [
    samples.length > 0 && [h("h2", {}, t("verdict.samples")), sampleList(samples.slice(0, NUM_SHOWN))],
    more.length > 0 && h("details.group", {}, h("summary", {}, t("verdict.more", { n: more.length })), sampleList(more)),
    Object.keys(signatures).length > 0 && h("details.group", {}, h("summary", {}, t("verdict.signatures")),
      h("dl", {}, Object.entries(signatures).map(([name, text]) => [h("dt", {}, metricName(name)), h("dd", {}, h("code", {}, text))]))),
  ];
}

const metricName = (metric) => ({ bleu: "BLEU", chrf: "chrF++" })[metric] ?? metric;
const signed = (value) => `${value > 0 ? "+" : ""}${number(value, 2)}`; // as in the server's sentence

export function scoreTable(evaluation, candidate) {
  const rows = [["base", t("verdict.base")], ["current", t("verdict.current")], ["candidate", candidate ?? t("verdict.candidate")]]
    .filter(([name]) => evaluation[name]);
  return h("table.scores", {},
    h("thead", {}, h("tr", {}, h("th", { scope: "col" }, t("verdict.translator")), ["bleu", "chrf"].map((m) => h("th.num", { scope: "col" }, metricName(m))))),
    h("tbody", {}, rows.map(([name, label]) => h("tr", { class: name }, h("th", { scope: "row" }, label),
      ["bleu", "chrf"].map((m) => h("td.num", {}, number(evaluation[name][m], 1)))))));
}

function sampleList(samples) {
  return h("div.samples", {}, samples.map((s) => {
    const titleId = newId("sample");
    const line = (name) => s[name] !== null && s[name] !== undefined
      && h("div", { class: name }, h("dt", {}, t(`sample.${name}`)), h("dd", {}, s[name]));
    return h("article", { "aria-labelledby": titleId }, h("h3", { id: titleId }, s.source),
      h("dl", {}, line("reference"), line("candidate"), line("current"), line("base")));
  }));
}
