// From a file to a started job: the file, its columns and faults, what is learnt from it, the settings, the start.

import { get, post } from "../api.js";
import { field, h, replace, select } from "../dom.js";
import { languageName, t } from "../i18n.js";
import { busy, problemBox } from "../notices.js";
import { address, draft, keepDraft, note } from "../store.js";
import { ConfigForm } from "./config_form.js";
import { estimate } from "./estimate.js";
import { languageTags } from "./language_tags.js";
import { PreviewPanel } from "./preview_panel.js";
import { UploadPanel } from "./upload_panel.js";

const DRAFT = "train";
const NAME = /^[a-z0-9][a-z0-9_-]{0,62}$/;

export async function mount(root, { params, signal }) {
  replace(root, h("h1", {}, t("nav.train")), busy(t("train.loading")));
  try {
    const [schema, adapters, jobs] = await Promise.all([
      get("openapi.json", { signal }), get("adapters", { signal }), get("jobs?status=succeeded&limit=5", { signal }),
    ]);
    const dataset = params.dataset ? await get(`datasets/${encodeURIComponent(params.dataset)}`, { signal }).catch((problem) => {
      if (problem.status !== 404) throw problem;
      return null; // deleted since: begin with the file
    }) : null;
    if (!signal.aborted) new TrainView(root, { schema, adapters, jobs, dataset, signal });
  } catch (problem) {
    if (signal.aborted) return;
    addEventListener("dragoman:back", () => mount(root, { params, signal }), { signal, once: true });
    replace(root, h("h1", {}, t("nav.train")), problemBox(problem, { retry: () => dispatchEvent(new Event("dragoman:back")) }));
  }
}

/** Makes a job's name, languages and settings those that the view begins with. */
export function startFrom({ adapter, priority, config: { source, target, ...config } }) {
  const told = (tag) => (tag === "und" ? "" : tag);
  keepDraft(DRAFT, { adapter, priority, source: told(source), target: told(target), config });
}

class TrainView {
  constructor(root, { schema, adapters, jobs, dataset, signal }) {
    Object.assign(this, { adapters, jobs, signal });
    this.kept = { adapter: "", source: "", target: "", config: {}, keys: {}, ...draft(DRAFT) };
    this.adopted = {};
    this.priorities = schema.components.schemas.Priority.enum;
    this.upload = new UploadPanel({ signal, onDataset: (found) => this.#use(found) });
    this.preview = new PreviewPanel(signal);
    this.form = new ConfigForm(schema, this.kept.config, (config) => this.#keep({ config }));
    this.settings = h("section.step", { hidden: true, "aria-labelledby": "settings-title" });
    replace(root, h("h1", {}, t("nav.train")), h("p.lead", {}, t("train.lead")), this.upload.element, this.preview.element, this.settings);
    this.#buildSettings();
    if (dataset) this.upload.show(dataset);
  }

  #use(dataset) {
    note({ dataset: dataset?.id });
    this.dataset = dataset;
    this.settings.hidden = !dataset;
    if (!dataset) {
      this.preview.hide();
      return;
    }
    if (!this.kept.adapter) this.name.value = suggestName(dataset.name);
    this.#guessLanguages(dataset);
    this.#refresh();
  }

  #buildSettings() {
    const language = (name) => {
      const input = h("input", {
        value: this.kept[name], list: "language-tags", maxlength: 35, autocomplete: "off", spellcheck: "false",
        oninput: () => this.#keep({ [name]: input.value.trim() }),
      });
      return input;
    };
    this.name = h("input", {
      value: this.kept.adapter, maxlength: 63, autocomplete: "off", spellcheck: "false", list: "adapter-names", required: true,
      oninput: () => { this.#adoptLanguages(); this.#keep({ adapter: this.name.value.trim() }); },
    });
    this.source = language("source");
    this.target = language("target");
    this.nameField = field(t("train.adapter"), this.name, t("train.adapter.hint"));
    this.sourceField = field(t("train.source"), this.source, t("train.language.hint"));
    this.targetField = field(t("train.target"), this.target, t("train.language.hint"));
    this.priority = select(this.priorities.map((value) => ({ value, label: t(`priority.${value}`) })), this.kept.priority ?? "normal", {
      onchange: () => this.#keep({ priority: this.priority.value }),
    });
    this.nameNote = h("p.hint.strong");
    this.estimate = h("p.estimate", { role: "status" });
    this.fault = h("div");
    this.start = h("button.primary.large", { type: "button", onclick: () => this.submit() }, t("train.start"));
    replace(this.settings,
      h("h2", { id: "settings-title" }, t("train.settings")),
      languageTags(),
      h("datalist", { id: "adapter-names" }, this.adapters.map((a) => h("option", { value: a.name }))),
      h("div.fields", {}, this.nameField, this.sourceField, this.targetField), this.nameNote,
      this.form.element, h("div.fields", {}, field(t("train.priority"), this.priority, t("train.priority.hint"))), this.estimate, this.fault,
      h("p.actions", {}, this.start, h("span.hint", {}, t("train.start.hint"))));
  }

  /** A column called "en" tells a language, where nobody has said otherwise. */
  #guessLanguages({ mapping }) {
    for (const side of ["source", "target"]) {
      if (!this[side].value && /^[a-z]{2,3}([-_][a-z]{2,4})?$/i.test(mapping[side] ?? "") && languageName(mapping[side].replace("_", "-")) !== mapping[side]) {
        this[side].value = mapping[side].replace("_", "-");
      }
    }
    this.#adoptLanguages();
  }

  /** A new version of an adapter translates between the languages of the others, unless told otherwise. */
  #adoptLanguages() {
    const known = this.adapters.find((a) => a.name === this.name.value.trim());
    for (const side of ["source", "target"]) {
      if (this[side].value === this.adopted[side]) this[side].value = ""; // of another name, typed on the way to this one
      this.adopted[side] = undefined;
      if (!this[side].value && known && known[side] !== "und") this.adopted[side] = this[side].value = known[side];
    }
  }

  #keep(changes) {
    Object.assign(this.kept, changes, { source: this.source.value.trim(), target: this.target.value.trim() });
    keepDraft(DRAFT, this.kept);
    this.#refresh();
  }

  #refresh() {
    if (!this.dataset) return;
    const name = this.name.value.trim();
    const known = this.adapters.find((a) => a.name === name);
    this.nameField.setError(name && (!NAME.test(name) || name === "base") ? t("train.adapter.invalid") : "");
    this.nameNote.textContent = known ? t("train.adapter.next", { name, version: Math.max(...known.versions) + 1 })
      : NAME.test(name) ? t("train.adapter.new", { name }) : "";
    const effective = this.form.effective();
    this.estimate.textContent = estimate(this.dataset, effective, this.jobs);
    this.preview.show(this.dataset, this.#config());
  }

  #config() {
    const languages = Object.fromEntries(["source", "target"].map((s) => [s, this[s].value.trim()]).filter(([, v]) => v));
    return { ...languages, ...this.form.config() };
  }

  async submit() {
    replace(this.fault);
    this.form.clearErrors();
    for (const side of [this.sourceField, this.targetField]) side.setError("");
    const adapter = this.name.value.trim();
    if (!NAME.test(adapter) || adapter === "base") {
      this.nameField.setError(t("train.adapter.invalid"));
      this.name.focus();
      return;
    }
    if (!this.form.check()) return;
    const body = { dataset_id: this.dataset.id, adapter, priority: this.priority.value, config: this.#config() };
    this.start.disabled = true;
    replace(this.fault, busy(t("train.starting")));
    try {
      const job = await post("jobs", body, { headers: { "Idempotency-Key": this.#retryKey(body) } });
      keepDraft(DRAFT, null);
      if (!this.signal.aborted) location.hash = address(["jobs", job.id]);
    } catch (problem) {
      replace(this.fault, problemBox(problem, problem.status === 0 || problem.status === 503 ? { retry: () => this.submit() } : {}));
      this.#place(problem.errors);
    } finally {
      this.start.disabled = false;
    }
  }

  /** The same request, sent again after a lost connection or a reload, is the same job. */
  #retryKey(body) {
    const wanted = JSON.stringify(body);
    if (this.kept.retry?.wanted !== wanted) {
      const random = crypto.getRandomValues(new Uint8Array(16));
      this.kept.retry = { wanted, key: Array.from(random, (b) => b.toString(16).padStart(2, "0")).join("") };
      keepDraft(DRAFT, this.kept);
    }
    return this.kept.retry.key;
  }

  #place(errors) {
    for (const { loc, msg } of errors) {
      const path = loc.slice(loc.indexOf("config") + 1);
      if (path[0] === "source") this.sourceField.setError(msg);
      else if (path[0] === "target") this.targetField.setError(msg);
      else if (loc.at(-1) === "adapter") this.nameField.setError(msg);
      else this.form.setError(path, msg);
    }
    document.querySelector("[aria-invalid=true]")?.focus();
  }
}

const suggestName = (filename) => filename.toLowerCase().replace(/\.[a-z0-9]+$/, "").normalize("NFKD")
  .replace(/[^a-z0-9]+/g, "-").replace(/^-+|-+$/g, "").slice(0, 40);

