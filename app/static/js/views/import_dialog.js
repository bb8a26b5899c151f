// Bringing in an adapter that was trained elsewhere.

import { upload } from "../api.js";
import { field, h } from "../dom.js";
import { t } from "../i18n.js";
import { modal, toast } from "../notices.js";
import { languageTags } from "./language_tags.js";

export function openImport(done) {
  const file = h("input", { type: "file", accept: ".zip,.tar,.gz,.tgz", required: true });
  const name = h("input", { required: true, maxlength: 63, pattern: "[a-z0-9][a-z0-9_\\-]{0,62}", autocomplete: "off", spellcheck: "false" });
  const source = h("input", { maxlength: 35, list: "language-tags", autocomplete: "off" });
  const target = h("input", { maxlength: 35, list: "language-tags", autocomplete: "off" });
  const template = h("textarea", { rows: 2, placeholder: "{text}" });
  const system = h("textarea", { rows: 2 });
  const description = h("input", { maxlength: 2000 });
  const current = h("input", { type: "checkbox" });
  modal(t("import.title"), [
    h("p", {}, t("import.text")), languageTags(),
    field(t("import.file"), file, t("import.file.hint")), field(t("import.name"), name, t("train.adapter.hint")),
    h("div.fields", {}, field(t("train.source"), source), field(t("train.target"), target)),
    field(t("param.prompt.template.label"), template, t("import.prompt.hint")), field(t("param.prompt.system.label"), system),
    field(t("import.description"), description),
    h("label.check", {}, current, t("import.current")),
  ], t("import.do"), async () => {
    const prompt = template.value || system.value
      ? JSON.stringify({ template: template.value || "{text}", system: system.value || null }) : undefined;
    const made = await upload("adapters", {
      file: file.files[0], name: name.value.trim(), source: source.value.trim(), target: target.value.trim(), prompt, description: description.value,
      make_current: current.checked ? "true" : undefined,
    });
    toast(t(made.current ? "import.done_current" : "import.done", { ref: made.ref }));
    done();
  });
}
