// Text in, translation out, by one translator or by several side by side.

import { get } from "../api.js";
import { append, field, h, replace, select } from "../dom.js";
import { language, languageName, pairName, t } from "../i18n.js";
import { busy, problemBox } from "../notices.js";
import { draft, keepDraft, note, recall, remember } from "../store.js";
import { callPanel } from "./call_panel.js";
import { ResultCard } from "./result_card.js";

const DRAFT = "translate";
const MAX_COLUMNS = 4;
const EXAMPLES = { en: "The soup is cold and the bread is old.", lzh: "王怒，遂去。" };
const IN_TRAINING = ["running", "evaluating", "paused"];
const NEARLY = 0.8; // of the longest text: from there on its length is shown

/** With the limits of GET /frontend/settings; what it does not tell is left to the server's refusal. */
const optionsWithin = ({ maxAlternatives, maxNewTokens }) => ({
  alternatives: { value: 0, min: 0, max: maxAlternatives, step: 1 },
  temperature: { value: 0, min: 0, max: 2, step: 0.1 },
  max_new_tokens: { value: "", min: 1, max: maxNewTokens, step: 1 },
});

export async function mount(root, { params, signal }) {
  replace(root, h("h1.visually-hidden", {}, t("nav.translate")), busy(t("translate.loading")));
  let adapters, languages, jobs, limits;
  try {
    [adapters, languages, jobs, limits] = await Promise.all([
      get("adapters", { signal }), get("languages", { signal }), jobsInTraining(signal), get("frontend/settings", { signal }).catch(() => ({})),
    ]);
  } catch (problem) {
    if (signal.aborted) return;
    addEventListener("dragoman:back", () => mount(root, { params, signal }), { signal, once: true });
    replace(root, h("h1", {}, t("nav.translate")), problemBox(problem, { retry: () => dispatchEvent(new Event("dragoman:back")) }));
    return;
  }
  if (!signal.aborted) new TranslateView(root, { adapters, languages, jobs, limits, params, signal });
}

/** Jobs that have learnt something to try; without the queue one can translate all the same. */
async function jobsInTraining(signal) {
  const found = await Promise.all(IN_TRAINING.map((status) => get(`jobs?status=${status}&limit=10`, { signal }).catch(() => [])));
  return found.flat().filter((job) => job.checkpoints.length);
}

class TranslateView {
  constructor(root, { adapters, languages, jobs, limits, params, signal }) {
    Object.assign(this, { adapters, languages, signal, maxChars: limits.charLimit ?? Infinity, options: optionsWithin(limits) });
    this.checkpoints = jobs.map(({ id, adapter, status, checkpoints: [newest] }) => ({
      value: `job:${id}`, label: t(`checkpoint.${status}`, { adapter, step: newest.step }),
    }));
    this.kept = { text: "", options: {}, results: {}, running: false, ...draft(DRAFT) };
    for (const [name, { max }] of Object.entries(this.options)) if (this.kept.options[name] > max) this.kept.options[name] = max;
    this.choices = this.#choices();
    const values = this.choices.flatMap((group) => group.options.map((o) => o.value));
    const likely = adapters.find((a) => a.current && [a.source, a.target].includes(language)) ?? adapters.find((a) => a.current);
    this.choice = [params.with, recall("with"), likely?.name, "base"].find((ref) => values.includes(ref));
    this.compared = (params.compare ?? "").split(",").filter((ref) => values.includes(ref)).slice(0, MAX_COLUMNS);
    this.cards = new Map();
    this.stopping = null;
    this.#build(root);
    this.#layOut();
    if (this.kept.running) this.run(); // a reload interrupted it
    signal.addEventListener("abort", () => this.stopping?.abort());
  }

  #choices() {
    const current = this.adapters.filter((a) => a.current).map((a) => ({
      value: a.name, label: [a.name, pairName(a.source, a.target)].filter(Boolean).join(" – "),
    }));
    const versions = this.adapters.flatMap((a) => a.versions.map((n) => ({
      value: `${a.name}@${n}`, label: n === a.current ? t("translate.version_current", { ref: `${a.name}@${n}` }) : `${a.name}@${n}`,
    })));
    const told = this.languages.filter((l) => l.code !== "und");
    const targets = [...new Set(told.flatMap((l) => l.targets))].filter((to) => to !== "und");
    const pairs = [
      ...told.flatMap((l) => l.targets.map((to) => ({ value: `${l.code}>${to}`, label: pairName(l.code, to) }))),
      ...targets.map((to) => ({ value: `auto>${to}`, label: t("translate.auto_pair", { to: languageName(to) }) })),
    ];
    return [
      { label: t("translate.adapters"), options: current },
      { label: t("translate.pairs"), options: pairs },
      { label: t("translate.versions"), options: versions },
      { label: t("translate.training"), options: this.checkpoints },
      { label: t("translate.untouched"), options: [{ value: "base", label: t("translate.base") }] },
    ].filter((group) => group.options.length);
  }

  #build(root) {
    this.picker = select(this.choices, this.choice, { onchange: () => {
      this.choice = this.picker.value;
      note({ with: this.choice });
      remember("with", this.choice);
      this.#layOut();
    } });
    this.pickerHint = h("p.hint");
    this.input = h("textarea.source", {
      "aria-label": t("translate.source"), "aria-describedby": "source-length", value: this.kept.text, rows: 6, spellcheck: "true", placeholder: t("translate.placeholder"),
      oninput: () => this.#keep({ text: this.input.value }), onkeydown: (e) => {
        if (e.key === "Enter" && (e.ctrlKey || e.metaKey)) { e.preventDefault(); this.run(); }
      },
    });
    this.go = h("button.primary", { type: "button", onclick: () => this.run() }, t("translate.go"));
    this.stop = h("button", { type: "button", hidden: true, onclick: () => this.stopping?.abort() }, t("translate.stop"));
    this.example = h("button.quiet", { type: "button", onclick: () => { this.input.value = this.#exampleText(); this.#keep({ text: this.input.value }); this.run(); } }, t("translate.example"));
    this.length = h("span.hint", { id: "source-length" });
    this.fault = h("div");
    this.columns = h("div.columns");
    this.compareBox = h("details.compare", { open: this.compared.length > 0 }, h("summary", {}, t("translate.compare")),
      h("fieldset", {}, h("legend", {}, t("translate.compare_hint", { n: MAX_COLUMNS })), this.#compareChoices()));
    this.call = h("details.call", {}, h("summary", {}, t("call.title")));
    this.call.addEventListener("toggle", () => this.#showCall());
    const picker = field(t("translate.with"), this.picker);
    picker.append(this.pickerHint);
    replace(root, h("h1.visually-hidden", {}, t("nav.translate")),
      h("div.translate-bar", {}, picker),
      h("div.panes", {}, h("div.pane", {}, this.input, h("p.actions", {}, this.go, this.stop, this.example, h("span.hint.keys", {}, t("translate.keys")), this.length)), this.columns),
      this.fault, this.compareBox, this.optionsBox = this.#optionsBox(), this.call);
    this.#showLength();
  }

  /** In characters as the server counts them, not in JavaScript's halves. */
  #showLength() {
    const n = [...this.input.value].length;
    const isTooLong = n > this.maxChars;
    this.length.textContent = n > NEARLY * this.maxChars ? t("translate.chars", { n, max: this.maxChars }) : "";
    this.length.classList.toggle("error-text", isTooLong);
    if (isTooLong) this.input.setAttribute("aria-invalid", "true");
    else this.input.removeAttribute("aria-invalid");
    return isTooLong && t("translate.too_long", { n, max: this.maxChars });
  }

  #compareChoices() {
    const refs = ["base", ...this.checkpoints.map((c) => c.value),
      ...this.adapters.flatMap((a) => a.versions.map((n) => [`${a.name}@${n}`, n === a.current]))];
    return refs.map((entry) => {
      const [ref, isCurrent] = Array.isArray(entry) ? entry : [entry, false];
      const box = h("input", { type: "checkbox", checked: this.compared.includes(ref), value: ref, onchange: () => this.#compare(ref, box) });
      return h("label.chip", {}, box, isCurrent ? t("translate.version_current", { ref }) : this.#label(ref));
    });
  }

  #compare(ref, box) {
    if (box.checked && this.compared.length >= MAX_COLUMNS) box.checked = false;
    else this.compared = box.checked ? [...this.compared, ref] : this.compared.filter((r) => r !== ref);
    note({ compare: this.compared.join(",") });
    this.#layOut();
  }

  #optionsBox() {
    const fields = Object.entries(this.options).map(([name, { value, ...limits }]) => {
      const input = h("input", {
        type: "number", value: this.kept.options[name] ?? value, ...limits,
        onchange: () => {
          if (!input.checkValidity()) { input.reportValidity(); return; }
          this.#keep({ options: { ...this.kept.options, [name]: input.value === "" ? "" : Number(input.value) } });
        },
      });
      return field(t(`option.${name}`), input, t(`option.${name}.hint`));
    });
    return h("details.options", {}, h("summary", {}, t("translate.options")), h("div.fields", {}, fields));
  }

  /** The columns for what is chosen; those that stay keep their text. */
  #layOut() {
    const chosen = this.compared.length ? this.compared : [this.choice];
    this.picker.disabled = this.compared.length > 0;
    const adapter = this.#adapterOf(this.choice);
    this.pickerHint.textContent = this.compared.length ? t("translate.comparing")
      : adapter?.description || (this.adapters.length ? "" : t("translate.no_adapters"));
    for (const ref of chosen) {
      if (!this.cards.has(ref)) this.cards.set(ref, new ResultCard(ref, this.#label(ref), this.#adapterOf(ref), this.kept.results[ref]));
    }
    for (const ref of [...this.cards.keys()].filter((r) => !chosen.includes(r))) {
      this.cards.get(ref).stop();
      this.cards.delete(ref);
    }
    this.columns.dataset.count = chosen.length;
    replace(this.columns, chosen.map((ref) => this.cards.get(ref).element));
    this.example.hidden = !this.#exampleText() || Boolean(this.input.value);
    this.input.lang = adapter?.source?.split("-x-")[0] ?? "";
    this.#showCall();
  }

  #adapterOf(ref) {
    const [source, target] = ref.split(">");
    return this.adapters.find((a) => a.name === ref.split("@")[0])
      ?? (target ? this.adapters.find((a) => (source === "auto" || a.source === source) && a.target === target) : undefined);
  }

  #label(ref) {
    if (ref === "base") return t("translate.base");
    const named = ref.includes(">") ? this.choices.flatMap((g) => g.options) : this.checkpoints;
    return named.find((o) => o.value === ref)?.label ?? ref;
  }

  #exampleText() {
    return EXAMPLES[this.#adapterOf(this.choice)?.source];
  }

  #body(ref) {
    const [source, target] = ref.split(">");
    const options = Object.fromEntries(Object.entries(this.kept.options).filter(([name, v]) => v !== "" && v !== this.options[name].value));
    return { q: this.input.value, ...(target ? { source, target } : { adapter: ref }), ...options };
  }

  #keep(changes) {
    Object.assign(this.kept, changes);
    keepDraft(DRAFT, this.kept);
    this.#showLength();
    this.example.hidden = !this.#exampleText() || Boolean(this.input.value);
    this.#showCall();
  }

  #showCall() {
    if (!this.call.open) return;
    const first = this.compared[0] ?? this.choice;
    this.call.querySelector(".call-panel")?.remove();
    append(this.call, callPanel({ ...this.#body(first), q: this.input.value || EXAMPLES.en }));
  }

  async run() {
    if (this.stopping) return;
    replace(this.fault);
    const fault = this.input.value.trim() ? this.#showLength() : t("translate.nothing");
    if (fault) {
      replace(this.fault, h("p.notice", { role: "alert" }, fault));
      this.input.focus();
      return;
    }
    const wrong = this.optionsBox.querySelector(":invalid");
    if (wrong) {
      this.optionsBox.open = true;
      wrong.reportValidity();
      return;
    }
    this.stopping = new AbortController();
    this.go.disabled = true;
    this.stop.hidden = false;
    this.#keep({ running: true, results: {} });
    const work = [...this.cards].map(async ([ref, card]) => {
      const result = await card.run(this.#body(ref), this.stopping.signal);
      if (result) this.#keep({ results: { ...this.kept.results, [ref]: result } });
    });
    await Promise.all(work);
    // Left with the view, it is taken up again when the view comes back; stopped by its button, it is not.
    if (!this.signal.aborted) this.#keep({ running: false });
    this.stopping = null;
    this.go.disabled = false;
    this.stop.hidden = true;
  }
}
