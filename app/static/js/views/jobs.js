// All jobs, newest first, kept up to date while anybody looks.

import { get } from "../api.js";
import { h, replace, select } from "../dom.js";
import { date, duration, number, t } from "../i18n.js";
import { busy, emptyState, problemBox } from "../notices.js";
import { pause } from "../sse.js";
import { address, note } from "../store.js";

export const ENDED = new Set(["succeeded", "failed", "cancelled"]);
const STATUSES = ["queued", "preparing", "running", "pausing", "paused", "evaluating", "succeeded", "failed", "cancelling", "cancelled"];
const ACTIVE_MS = 2_000;
const IDLE_MS = 10_000;
const PAGE = 20;
const MAX_ASKED = 100; // jobs in one answer

export function mount(root, { params, signal }) {
  const body = h("div", {}, busy(t("jobs.loading")));
  const filter = select([{ value: "", label: t("jobs.all") }, ...STATUSES.map((s) => ({ value: s, label: t(`status.${s}`) }))], params.status ?? "", {
    "aria-label": t("jobs.filter"), onchange: () => { note({ status: filter.value }); shown = PAGE; load(); },
  });
  replace(root, h("header.view-head", {}, h("h1", {}, t("nav.jobs")), filter), body);
  let shown = PAGE;
  let asked = 0;
  const more = h("button", { type: "button", onclick: () => { shown += PAGE; load(); } }, t("jobs.more"));

  async function load() {
    const turn = ++asked;
    try {
      const jobs = await newest(shown + 1, filter.value, signal);
      if (turn !== asked) return true; // of another filter
      const focused = document.activeElement;
      replace(body, jobs.length ? table(jobs.slice(0, shown)) : nothing(filter.value),
        jobs.length > shown && h("p.actions", {}, more));
      const link = focused?.getAttribute("href");
      if (link) body.querySelector(`a[href="${CSS.escape(link)}"]`)?.focus();
      else if (focused === more) more.focus();
      return jobs.some((job) => !ENDED.has(job.status));
    } catch (problem) {
      if (!signal.aborted && turn === asked) replace(body, problemBox(problem, { retry: load }));
      return false;
    }
  }

  (async () => {
    while (!signal.aborted) {
      const isActive = document.hidden || (await load());
      await pause(isActive ? ACTIVE_MS : IDLE_MS, signal);
    }
  })();
  addEventListener("dragoman:back", load, { signal });
}

async function newest(count, status, signal) {
  const found = [];
  for (;;) {
    const limit = Math.min(count - found.length, MAX_ASKED);
    const after = found.at(-1)?.id;
    const page = await get(`jobs?${new URLSearchParams({ limit, ...(status && { status }), ...(after && { after }) })}`, { signal });
    found.push(...page);
    if (page.length < limit || found.length === count) return found;
  }
}

const nothing = (status) => (status ? h("p.hint", {}, t("jobs.none_such"))
  : emptyState(t("jobs.empty"), t("jobs.empty.text"), h("a.button.primary", { href: address(["train"]) }, t("jobs.empty.do"))));

function table(jobs) {
  return h("div.scroll", { tabindex: 0, role: "region", "aria-label": t("nav.jobs") }, h("table.jobs.stack", {},
    h("thead", {}, h("tr", {}, ["adapter", "status", "progress", "loss", "created"].map((c) => h(c === "loss" ? "th.num" : "th", { scope: "col" }, t(`jobs.${c}`))))),
    h("tbody", {}, jobs.map((job) => h("tr", {},
      h("th", { scope: "row" }, h("a", { href: address(["jobs", job.id]) }, job.adapter, job.adapter_version && `@${job.adapter_version}`)),
      h("td", {}, statusTag(job.status)),
      h("td", {}, progress(job)),
      h("td.num", { "data-label": t("jobs.loss") }, number(job.loss_curve.train.at(-1)?.loss, 3)),
      h("td.nowrap", { "data-label": t("jobs.created") }, date(job.created_at)))))));
}

export const statusTag = (status) => h(`span.status.${status}`, {}, t(`status.${status}`));

function progress({ progress: p, status, queue_position: place }) {
  if (place) return h("span.hint", {}, t("jobs.place", { place }));
  if (!p.total_steps) return "";
  const left = !ENDED.has(status) && p.eta_seconds ? ` · ${t("job.left", { time: duration(p.eta_seconds) })}` : "";
  return [h("progress", { max: 100, value: p.percent, "aria-label": t("jobs.progress") }),
    h("span.hint", {}, `${number(p.step)}/${number(p.total_steps)}${left}`)];
}
