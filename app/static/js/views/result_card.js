// One translator's answer: streams in, and can be copied, judged and bettered.

import { post, request } from "../api.js";
import { announce, field, h, replace } from "../dom.js";
import { languageName, number, t } from "../i18n.js";
import { copyButton, modal, note, problemBox, toast } from "../notices.js";
import { events } from "../sse.js";

export class ResultCard {
  /** `adapter` tells the languages, for the screen reader's voice and for suggestions; `result` is shown if there is one. */
  constructor(ref, label, adapter, result) {
    this.adapter = adapter;
    this.stopping = new AbortController();
    this.output = h("div.output", { lang: adapter?.target?.split("-x-")[0] });
    this.heading = h("h2", {}, label);
    this.foot = h("div.result-foot");
    this.element = h("section.pane.result", { "aria-label": label, "data-ref": ref }, this.heading, this.output, this.foot);
    if (result) this.#finish(result);
    else this.output.append(h("span.placeholder", {}, t("translate.empty")));
  }

  /** For a card that is taken away: nobody waits for its answer any more. */
  stop() {
    this.stopping.abort();
  }

  /** Streams POST /translate into the card. Returns what to keep, or null if it was stopped or failed. */
  async run(body, signal) {
    const started = performance.now();
    this.output.setAttribute("aria-busy", "true");
    replace(this.foot, h("p.busy", {}, h("span.pulse", { "aria-hidden": "true" }), t("translate.waiting")));
    replace(this.output);
    const text = this.output.appendChild(document.createTextNode(""));
    try {
      const response = await request("translate", {
        method: "POST", signal: AbortSignal.any([signal, this.stopping.signal]), headers: { "Content-Type": "application/json" }, body: JSON.stringify({ ...body, stream: true }),
      });
      for await (const { event, data } of events(response)) {
        if (event === "token" && data.index === 0) {
          text.appendData(data.text);
          if (this.foot.querySelector(".busy")) replace(this.foot);
        } else if (event === "error") {
          throw Object.assign(new Error(data.detail), data);
        } else if (event === "done") {
          const result = { ...data, q: body.q, seconds: (performance.now() - started) / 1000 };
          this.#finish(result);
          announce(t("translate.done", { text: data.translatedText }));
          return result;
        }
      }
      throw new Error(t("translate.cut"));
    } catch (problem) {
      if (problem.name === "AbortError") replace(this.foot, note("quiet", t("translate.stopped")));
      else replace(this.foot, problemBox(problem instanceof TypeError ? new Error(t("translate.cut")) : problem));
      return null;
    } finally {
      this.output.removeAttribute("aria-busy");
    }
  }

  #finish(result) {
    replace(this.output, result.translatedText);
    const detected = result.detectedLanguage;
    replace(this.foot,
      result.finish_reason === "length" && note("warning", t("translate.length")),
      result.alternatives?.length > 0 && [
        h("h3", {}, t("translate.alternatives")),
        h("ul.alternatives", {}, result.alternatives.map((a) => h("li", {}, h("span", {}, a), copyButton(() => a)))),
      ],
      h("p.actions", {},
        copyButton(() => this.output.textContent),
        this.adapter && h("button.quiet.small", { type: "button", onclick: () => this.#suggest(result) }, t("suggest.open")),
        h("span.hint", {}, [
          result.adapter,
          detected && t("translate.detected", { language: languageName(detected.language), confidence: number(detected.confidence) }),
          t("translate.usage", { ...result.usage, time: number(result.seconds, 1) }),
        ].filter(Boolean).join(" · "))));
  }

  #suggest({ q, translatedText, adapter }) {
    const better = h("textarea", { rows: 4, value: translatedText, required: true });
    modal(t("suggest.title"), [h("p", {}, t("suggest.text")), h("blockquote", {}, q), field(t("suggest.label"), better)], t("suggest.send"), async () => {
      await post("suggest", { q, s: better.value, adapter });
      toast(t("suggest.thanks"));
    });
  }
}
