// Rows as the model will see them, the part that it learns in colour.

import { get } from "../api.js";
import { h, replace } from "../dom.js";
import { t } from "../i18n.js";
import { problemBox } from "../notices.js";

const NUM_ROWS = 5;
const WAIT_MS = 400;

export class PreviewPanel {
  constructor(signal) {
    this.signal = signal;
    this.rows = h("div.preview-rows");
    this.element = h("section.step", { hidden: true, "aria-labelledby": "preview-title" },
      h("h2", { id: "preview-title" }, t("preview.title")),
      h("p.hint", {}, t("preview.hint"), " ", h("mark.trained", {}, t("preview.trained")), " ", h("span.given", {}, t("preview.given"))),
      this.rows);
  }

  hide() {
    clearTimeout(this.timer);
    this.element.hidden = true;
    this.shown = null;
  }

  /** Asks anew once the settings have been still for a moment. */
  show(dataset, config) {
    const wanted = JSON.stringify([dataset.id, config]);
    if (wanted === this.shown) return;
    this.shown = wanted;
    this.element.hidden = false;
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.#load(dataset, config), WAIT_MS);
  }

  async #load(dataset, config) {
    const query = new URLSearchParams({ n: NUM_ROWS, adapter_config: JSON.stringify(config) });
    const asked = this.shown;
    try {
      const rows = await get(`datasets/${encodeURIComponent(dataset.id)}/preview?${query}`, { signal: this.signal });
      if (asked === this.shown) replace(this.rows, rows.map(renderedRow));
    } catch (problem) {
      if (this.signal.aborted || asked !== this.shown) return;
      // The settings are wrong, which the form says when it is sent; the rows can be shown without them.
      const plain = dataset.preview.slice(0, NUM_ROWS).map(plainRow);
      replace(this.rows, problem.status === 404 || problem.status === 405 ? null : problemBox(problem), plain);
    }
  }
}

function renderedRow({ segments, tokens, held_out: heldOut, too_long: tooLong }) {
  return h("article.preview-row", {},
    h("p.rendered", {}, segments.map((s) => (s.trained
      ? h("mark.trained", { title: t("preview.segment", { n: s.tokens }) }, s.text)
      : h("span.given", { title: t("preview.segment", { n: s.tokens }) }, s.text)))),
    h("p.hint", {}, t("preview.tokens", { n: tokens }),
      heldOut && h("span.tag", {}, t("preview.held_out")), tooLong && h("span.tag.warning", {}, t("preview.too_long"))));
}

function plainRow({ prompt, completion }) {
  return h("article.preview-row", {}, h("p.rendered", {}, h("span.given", {}, prompt), "\n", h("mark.trained", {}, completion)));
}
