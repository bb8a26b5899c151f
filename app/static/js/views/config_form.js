// Every parameter of a job, made from the server's own schema, so that form and server cannot drift apart.

import { append, field, h } from "../dom.js";
import { has, t } from "../i18n.js";
import { copyButton } from "../notices.js";
import { makeControl } from "./controls.js";

const OUTSIDE = new Set(["preset", "source", "target"]); // the view asks for these itself, or first
const OWN_PRESETS = ["fast", "quality"]; // before the recipes
const ORDER = ["training", "evaluation", "lora", "prompt"]; // any other section follows
const FIRST = ["training.num_train_epochs", "training.learning_rate", "training.per_device_train_batch_size", "evaluation.promote"];

export class ConfigForm {
  /** `config` holds what was changed before; `onChange` gets it anew at each change. */
  constructor(openapi, config, onChange) {
    this.schemas = openapi.components.schemas;
    this.schema = this.schemas.JobConfig;
    this.presets = this.schema.properties.preset["x-presets"] ?? {};
    this.onChange = onChange;
    this.preset = config.preset ?? "";
    this.fields = new Map(); // "training.seed" -> {control, box, initial}
    this.json = h("pre", { tabindex: 0, role: "region", "aria-label": t("form.json") });
    this.element = h("div.config-form");
    this.#build();
    this.#set(config);
  }

  #build() {
    const names = this.#presetNames();
    const cards = ["", ...names].map((name) => {
      const radio = h("input", { type: "radio", name: "preset", value: name, checked: name === this.preset, onchange: () => this.#choose(name) });
      const key = name || "none";
      return h("label.card-choice", {}, radio, h("span", {}, h("strong", {}, has(`preset.${key}`) ? t(`preset.${key}`) : key),
        has(`preset.${key}.hint`) && h("span.hint", {}, t(`preset.${key}.hint`))));
    });
    const sections = Object.entries(this.schema.properties).filter(([name]) => !OUTSIDE.has(name));
    const plain = sections.filter(([, s]) => !this.#resolve(s).properties);
    const grouped = sections.filter(([, s]) => this.#resolve(s).properties);
    const rest = (name, schema) => Object.entries(this.#resolve(schema).properties).map(([key, s]) => this.#field(`${name}.${key}`, s));
    const rank = ([name]) => (ORDER.includes(name) ? ORDER.indexOf(name) : ORDER.length);
    const groups = grouped.sort((a, b) => rank(a) - rank(b)).map(([name, schema]) => [name, rest(name, schema)]);
    append(this.element,
      h("fieldset.presets", {}, h("legend", {}, t("form.preset")), h("div.card-choices", {}, cards)),
      h("div.fields", {}, FIRST.map((path) => this.fields.get(path)?.box), plain.map(([name, s]) => this.#field(name, s))),
      groups.map(([name, boxes]) => h("details.group", { "data-section": name },
        h("summary", {}, has(`section.${name}`) ? t(`section.${name}`) : name, h("span.changed")),
        h("div.fields", {}, boxes.filter((box) => !box.parentNode)))),
      h("details.group", {}, h("summary", {}, t("form.json")), this.json, copyButton(() => this.json.textContent)));
  }

  #presetNames() {
    const options = [this.schema.properties.preset, ...(this.schema.properties.preset.anyOf ?? [])];
    const names = options.find((o) => o.enum)?.enum ?? [];
    return [...OWN_PRESETS.filter((name) => names.includes(name)), ...names.filter((name) => !OWN_PRESETS.includes(name))];
  }

  #resolve(schema) {
    return schema.$ref ? this.schemas[schema.$ref.split("/").at(-1)] : schema;
  }

  #field(path, schema) {
    const name = path.split(".").at(-1);
    const control = makeControl(schema, () => this.#changed(path));
    control.element.id = `param-${path.replace(".", "-")}`;
    const label = has(`param.${path}.label`) ? t(`param.${path}.label`) : has(`param.${name}.label`) ? t(`param.${name}.label`) : name;
    const hint = has(`param.${path}`) ? t(`param.${path}`) : has(`param.${name}`) ? t(`param.${name}`) : schema.description;
    const box = field(label, control.element, hint);
    box.dataset.param = path;
    const title = box.querySelector("label");
    if (label !== name) title.append(h("code.param-name", {}, name));
    if (control.isGroup) {
      title.removeAttribute("for");
      title.id = `${control.element.id}-label`;
      control.element.setAttribute("aria-labelledby", title.id);
    }
    const back = h("button.link.small", { type: "button", hidden: true, onclick: () => this.#reset(path) }, t("form.reset"));
    box.append(back);
    this.fields.set(path, { control, box, back, initial: schema.default });
    return box;
  }

  /** What holds where nobody says anything: the preset's value, or the server's default. */
  #inherited(path) {
    const [section, key] = path.split(".");
    return this.presets[this.preset]?.[section]?.[key] ?? this.fields.get(path).initial;
  }

  #set(config) {
    for (const [path, { control }] of this.fields) {
      const [section, key] = path.split(".");
      const own = key ? config[section]?.[key] : config[section];
      control.write(own ?? this.#inherited(path));
    }
    this.#mark();
  }

  #choose(name) {
    const own = this.config();
    this.preset = name;
    this.#set(own);
    this.onChange(this.config());
  }

  #reset(path) {
    this.fields.get(path).control.write(this.#inherited(path));
    this.#changed(path);
    this.fields.get(path).control.element.focus();
  }

  #changed(path) {
    this.fields.get(path).box.setError("");
    this.#mark();
    this.onChange(this.config());
  }

  #mark() {
    for (const [path, { box, back }] of this.fields) {
      const differs = this.#differs(path);
      box.classList.toggle("is-changed", differs);
      back.hidden = !differs;
    }
    for (const group of this.element.querySelectorAll("details[data-section]")) {
      const n = group.querySelectorAll(".is-changed").length;
      group.querySelector(".changed").textContent = n ? t("form.changed", { n }) : "";
    }
    this.json.textContent = JSON.stringify(this.config(), null, 2);
  }

  #differs(path) {
    const value = this.fields.get(path).control.read();
    return value !== undefined && JSON.stringify(value) !== JSON.stringify(this.#inherited(path) ?? null);
  }

  /** What the job is to be sent: the preset and whatever differs from what it or the defaults say. */
  config() {
    const config = this.preset ? { preset: this.preset } : {};
    for (const [path, { control }] of this.fields) {
      if (!this.#differs(path)) continue;
      const [section, key] = path.split(".");
      if (key) config[section] = { ...config[section], [key]: control.read() };
      else config[section] = control.read();
    }
    return config;
  }

  /** Every parameter with the value that will hold. */
  effective() {
    const config = {};
    for (const [path, { control }] of this.fields) {
      const [section, key] = path.split(".");
      const value = control.read() ?? this.#inherited(path) ?? null;
      if (key) (config[section] ??= {})[key] = value;
      else config[section] = value;
    }
    return config;
  }

  check() {
    for (const [, { control, box }] of this.fields) {
      const fault = control.fault();
      if (!fault) continue;
      box.setError(fault);
      this.#reveal(box);
      return false;
    }
    return true;
  }

  setError(path, message) {
    const box = this.fields.get(path.slice(0, 2).join("."))?.box ?? this.fields.get(path[0])?.box;
    if (!box) return;
    box.setError(message);
    this.#reveal(box);
  }

  #reveal(box) {
    const group = box.closest("details");
    if (group) group.open = true;
    box.querySelector("input, select, textarea")?.focus();
  }

  clearErrors() {
    for (const { box } of this.fields.values()) box.setError("");
  }
}
