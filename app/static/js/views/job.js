// One job, live: what it does, its curves, its log, its verdict, and what can be done about it.

import { del, get, post, text } from "../api.js";
import { announce, h, replace } from "../dom.js";
import { date, duration, number, t } from "../i18n.js";
import { busy, copyButton, modal, note, problemBox, toast } from "../notices.js";
import { follow, pause } from "../sse.js";
import { address } from "../store.js";
import { evaluationPanel, samplesPanel } from "./evaluation_panel.js";
import { JobCharts } from "./job_charts.js";
import { ENDED, statusTag } from "./jobs.js";
import { makeCurrent } from "./promotion.js";
import { startFrom } from "./train.js";

const LOG_MS = 3_000;
const LOG_LINES = 200;
const REFRESH_MS = 250;
const CAN = {
  pause: new Set(["queued", "preparing", "running"]),
  resume: new Set(["paused"]),
  cancel: new Set(["queued", "preparing", "running", "pausing", "paused", "evaluating"]),
  delete: ENDED,
};

export async function mount(root, { path, signal }) {
  replace(root, h("h1", {}, t("job.title")), busy(t("job.loading")));
  try {
    const job = await get(`jobs/${encodeURIComponent(path[0])}`, { signal });
    if (!signal.aborted) new JobView(root, job, signal);
  } catch (problem) {
    if (signal.aborted) return;
    addEventListener("dragoman:back", () => mount(root, { path, signal }), { signal, once: true });
    replace(root, h("h1", {}, t("job.title")), problemBox(problem, { actions: [h("a.button", { href: address(["jobs"]) }, t("job.all"))] }));
  }
}

class JobView {
  constructor(root, job, signal) {
    Object.assign(this, { job, signal, path: `jobs/${encodeURIComponent(job.id)}`, asked: 0 });
    this.head = h("header.view-head", {});
    this.link = h("p.hint");
    this.checkpoint = h("a", { href: address(["translate"], { compare: ["base", `job:${job.id}`].join(",") }) });
    this.checkpointBox = h("p", { hidden: true }, this.checkpoint);
    this.problems = h("div");
    this.figures = h("dl.figures");
    this.charts = new JobCharts();
    this.verdict = h("div.verdict", { hidden: true });
    this.samples = h("div.verdict");
    this.log = h("pre.log", { tabindex: 0, role: "region", "aria-label": t("job.log") });
    this.logBox = h("details.group", { ontoggle: () => this.#readLog() }, h("summary", {}, t("job.log")), this.log, copyButton(() => this.log.textContent));
    this.config = h("details.group", {}, h("summary", {}, t("job.config")),
      h("pre", { tabindex: 0, role: "region", "aria-label": t("job.config") }, JSON.stringify(job.config, null, 2)));
    replace(root, h("p.crumbs", {}, h("a", { href: address(["jobs"]) }, t("job.all"))),
      this.head, this.checkpointBox, this.link, this.problems, this.figures, this.verdict, this.charts.element, this.samples, this.logBox, this.config);
    this.#show();
    this.#follow();
    this.#tailLog();
    addEventListener("dragoman:back", () => this.#refreshSoon(), { signal });
  }

  #follow() {
    follow(`${this.path}/events`, {
      signal: this.signal,
      onEvent: ({ event, data }) => this.#on(event, data),
      onState: (state) => {
        if (state === "lost" && !this.link.textContent) announce(t("job.lost"));
        this.link.textContent = state === "lost" ? t("job.lost") : "";
        if (state instanceof Error) replace(this.problems, problemBox(state));
      },
    });
  }

  #on(event, data) {
    if (event === "metrics") {
      this.job.progress = { ...this.job.progress, ...data.progress };
      if ("restart_after_step" in data) this.#refreshSoon(); // later points no longer count
      this.late?.push(data);
      this.#addPoints(data);
      this.#showProgressSoon();
    } else {
      this.#refreshSoon();
    }
    return event === "done";
  }

  /** Older points are a replay of what is there already; a run that begins anew shows by its status. */
  #addPoints({ train: point, eval: judgement }) {
    const { train, eval: judged } = this.job.loss_curve;
    if (point && point.step > (train.at(-1)?.step ?? -1)) train.push(point);
    if (judgement && judgement.step > (judged.at(-1)?.step ?? -1)) judged.push(judgement);
  }

  /** A replay brings thousands of points at once, and drawing costs as much as the curve is long. */
  #showProgressSoon() {
    this.frame ??= requestAnimationFrame(() => {
      this.frame = undefined;
      this.#showFigures();
      this.charts.show(this.job.loss_curve);
    });
  }

  /** The record is the truth; a stream that is replayed asks for it once. */
  #refreshSoon(ms = REFRESH_MS) {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.#refresh(), ms);
  }

  async #refresh() {
    const turn = ++this.asked;
    const late = this.late = []; // what comes while the record is on its way is not in it
    let job;
    try {
      job = await get(this.path, { signal: this.signal });
    } catch (problem) {
      if (turn !== this.asked) return;
      this.late = null;
      if (problem.status >= 500) this.#refreshSoon(LOG_MS);
      return; // where there was no answer at all, it is asked again once the server is back
    }
    if (this.signal.aborted || turn !== this.asked) return; // a newer one is shown, or on its way
    const before = this.job.status;
    this.job = job;
    this.late = null;
    late.forEach((data) => this.#addPoints(data));
    this.#show();
    if (job.status !== before) announce(t("job.now", { status: t(`status.${job.status}`) }));
    if (ENDED.has(job.status)) this.#readLog();
  }

  #show() {
    const { job } = this;
    const ref = job.adapter_version ? `${job.adapter}@${job.adapter_version}` : job.adapter;
    this.#showHead(h("h1", { tabindex: -1 }, ref, " ", statusTag(job.status)));
    replace(this.problems,
      job.error && problemBox(Object.assign(new Error(job.error.message), job.error), { actions: [this.#again()] }),
      job.warnings.map((warning) => note("warning", warning)));
    this.verdict.hidden = !job.evaluation;
    if (job.evaluation) {
      replace(this.verdict, evaluationPanel(job.evaluation, job));
      replace(this.samples, samplesPanel(job.evaluation));
    }
    this.config.querySelector("pre").textContent = JSON.stringify(job.config, null, 2);
    this.#showCheckpoint();
    this.#showFigures();
    this.charts.show(job.loss_curve, job.status);
  }

  /** Whoever has the focus on an action keeps it, or is led to what became of the job where that action is gone. */
  #showHead(title) {
    const held = this.head.contains(document.activeElement) && document.activeElement.textContent;
    replace(this.head, title, this.#actions());
    if (held) ([...this.head.querySelectorAll(".actions > *")].find((e) => e.textContent === held) ?? title).focus();
  }

  /** A link to what it has learnt so far, in a place of its own: it changes under whoever has the focus there. */
  #showCheckpoint() {
    const newest = !ENDED.has(this.job.status) && this.job.checkpoints[0];
    this.checkpointBox.hidden = !newest;
    if (newest) this.checkpoint.textContent = t("job.checkpoint", { step: newest.step });
  }

  #showFigures() {
    const { job } = this;
    const { progress: p } = job;
    const last = job.loss_curve.train.at(-1);
    const running = !ENDED.has(job.status);
    const figure = (name, value) => h("div", {}, h("dt", {}, t(`figure.${name}`)), h("dd", {}, value));
    replace(this.figures,
      figure("step", p.total_steps ? [`${number(p.step)} / ${number(p.total_steps)}`,
        running && h("progress", { max: 100, value: p.percent, "aria-label": t("figure.step") })] : "–"),
      job.queue_position && figure("queue", number(job.queue_position)),
      job.expected_start && figure("starts", date(job.expected_start)),
      running && p.eta_seconds !== null && figure("eta", duration(p.eta_seconds)),
      job.finished_at && job.started_at && figure("took", duration((new Date(job.finished_at) - new Date(job.started_at)) / 1000)),
      figure("loss", number(last?.loss, 3)),
      job.loss_curve.eval.length > 0 && figure("eval_loss", number(job.loss_curve.eval.at(-1).loss, 3)),
      figure("speed", p.tokens_per_second ? number(p.tokens_per_second) : "–"),
      (p.memory_mb ?? last?.memory_mb) && figure("memory", `${number(p.memory_mb ?? last.memory_mb)} MiB`),
      job.attempt > 1 && figure("attempt", number(job.attempt)),
      figure("created", date(job.created_at)));
  }

  #again() {
    return h("a.button", { href: address(["train"], { dataset: this.job.dataset_id }), onclick: () => startFrom(this.job) }, t("job.again"));
  }

  #actions() {
    const { job } = this;
    const button = (name, act, style = "button") => CAN[name].has(job.status)
      && h(style, { type: "button", onclick: act }, t(`job.${name}`));
    const done = ENDED.has(job.status) && job.adapter_version;
    const ref = `${job.adapter}@${job.adapter_version}`;
    return h("p.actions", {},
      done && h("a.button.primary", { href: address(["translate"], { with: ref }) }, t("job.try")),
      done && h("a.button", { href: address(["translate"], { compare: ["base", ref].join(",") }) }, t("job.compare")),
      done && job.evaluation && !job.evaluation.promoted
        && h("button", { type: "button", onclick: () => makeCurrent(job.adapter, job.adapter_version, () => this.#refreshSoon()) }, t("job.promote")),
      button("pause", () => this.#act("pause")), button("resume", () => this.#act("resume"), "button.primary"),
      button("cancel", () => this.#askToCancel()),
      ENDED.has(job.status) && !job.error && this.#again(),
      button("delete", () => modal(t("job.delete.title"), h("p", {}, t("job.delete.text")), t("job.delete"), async () => {
        await del(this.path);
        toast(t("job.deleted"));
        location.hash = address(["jobs"]);
      }, { danger: true }), "button.quiet"));
  }

  #askToCancel() {
    const publish = h("input", { type: "checkbox" });
    modal(t("job.cancel.title"), [
      h("p", {}, t("job.cancel.text")),
      this.job.progress.step > 0 && h("label.check", {}, publish, t("job.cancel.publish")),
    ], t("job.cancel"), () => this.#post("cancel", { publish: publish.checked }), { danger: true, dismiss: t("job.cancel.dismiss") });
  }

  async #act(name) {
    try {
      await this.#post(name);
    } catch (problem) {
      this.problems.prepend(problemBox(problem));
    }
  }

  async #post(name, body = {}) {
    const job = await post(`${this.path}/${name}`, body);
    this.asked++; // a record that was asked for before is older
    this.late = null;
    this.job = { ...job, loss_curve: this.job.loss_curve };
    this.#show();
  }

  async #tailLog() {
    while (!this.signal.aborted && !ENDED.has(this.job.status)) {
      if (!document.hidden) await Promise.all([this.#readLog(), this.#findCheckpoints()]);
      await pause(LOG_MS, this.signal);
    }
  }

  /** No event tells of them. */
  async #findCheckpoints() {
    const last = this.job.loss_curve.train.at(-1)?.step ?? 0;
    const now = await get(`${this.path}?after_step=${last}`, { signal: this.signal }).catch(() => null);
    if (!now) return;
    this.job.checkpoints = now.checkpoints;
    this.#showCheckpoint();
  }

  async #readLog() {
    if (!this.logBox.open) return;
    const whole = await text(`${this.path}/log`, { signal: this.signal }).catch(() => null);
    if (whole === null) return;
    const atEnd = this.log.scrollTop + this.log.clientHeight >= this.log.scrollHeight - 8;
    this.log.textContent = whole.trimEnd().split("\n").slice(-LOG_LINES).join("\n") || t("job.log.empty");
    if (atEnd) this.log.scrollTop = this.log.scrollHeight;
  }
}
