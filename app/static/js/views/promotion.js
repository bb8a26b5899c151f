// Making a version current: forward or back, at once, for all who ask for the adapter by its name.

import { put } from "../api.js";
import { h } from "../dom.js";
import { t } from "../i18n.js";
import { modal, toast } from "../notices.js";

export function makeCurrent(name, version, done) {
  modal(t("promote.title", { ref: `${name}@${version}` }), h("p", {}, t("promote.text", { name })), t("promote.do"), async () => {
    await put(`adapters/${encodeURIComponent(name)}/current`, { version });
    toast(t("promote.done", { ref: `${name}@${version}` }));
    done();
  });
}
