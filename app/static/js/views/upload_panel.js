// A file becomes a dataset: drop it, see what was found in it, say which column is which, decide about faulty lines.

import { del, get, Problem, upload } from "../api.js";
import { announce, append, field, h, replace, select } from "../dom.js";
import { date, number, size, t } from "../i18n.js";
import { busy, modal, problemBox, toast } from "../notices.js";
import { faults, reportPanel } from "./dataset_report.js";

const ACCEPT = ".csv,.tsv,.jsonl,.ndjson,.json,.tmx,.parquet,.txt";
const MAX_LISTED = 6;
const HEAD_BYTES = 64 * 1024;
const ENCODINGS = ["gb18030", "big5", "shift_jis", "euc-kr", "windows-1252", "windows-1251", "iso-8859-2", "utf-16"];
const IN_DOUBT = /^(encoding_|invalid_utf8|invalid_bytes)/;

export class UploadPanel {
  /** `onDataset` is told each dataset that is there, and null when another file is wanted. */
  constructor({ signal, onDataset }) {
    Object.assign(this, { signal, onDataset, file: null });
    this.body = h("div");
    this.element = h("section.step", { "aria-labelledby": "file-title" }, h("h2", { id: "file-title" }, t("upload.title")), this.body);
    this.#ask();
  }

  #ask() {
    const input = h("input.visually-hidden", { type: "file", accept: ACCEPT, id: "file", onchange: () => this.#take(input.files) });
    const zone = h("label.dropzone", {
      for: "file",
      ondragover: (e) => { e.preventDefault(); zone.classList.add("over"); },
      ondragleave: () => zone.classList.remove("over"),
      ondrop: (e) => {
        e.preventDefault();
        zone.classList.remove("over");
        this.#take(e.dataTransfer.files);
      },
    }, h("strong", {}, t("upload.drop")), h("span", {}, t("upload.formats")));
    this.existing = h("div.existing");
    replace(this.body, h("div.drop", {}, input, zone), this.#sampleFile(), this.existing);
    this.#listExisting();
  }

  #sampleFile() {
    const rows = [["source", "target"], ["You must learn patience.", "Learn patience, you must."], ["The soup is cold.", "Cold, the soup is."]];
    return h("figure.sample", {}, h("figcaption", {}, t("upload.sample")),
      h("table", {}, h("thead", {}, h("tr", {}, rows[0].map((c) => h("th", { scope: "col" }, c)))),
        h("tbody", {}, rows.slice(1).map((row) => h("tr", {}, row.map((c) => h("td", { lang: "en" }, c)))))));
  }

  async #listExisting() {
    const datasets = await get("datasets", { signal: this.signal }).catch(() => []);
    const list = h("ul.plain", {}, datasets.slice(0, MAX_LISTED).map((d) => this.#choice(d)));
    const rest = datasets.slice(MAX_LISTED);
    const more = h("button.small", {
      type: "button", onclick: () => {
        append(list, rest.map((d) => this.#choice(d)));
        more.remove();
        list.children[MAX_LISTED].querySelector("button").focus();
      },
    }, t("jobs.more"));
    replace(this.existing, datasets.length > 0 && [h("h3", {}, t("upload.existing")), list, rest.length > 0 && more]);
  }

  #choice(dataset) {
    const { id, name } = dataset;
    const remove = () => modal(t("dataset.delete.title", { name }), h("p", {}, t("dataset.delete.text")), t("version.delete"), async () => {
      await del(`datasets/${encodeURIComponent(id)}`);
      toast(t("dataset.deleted", { name }));
      this.#listExisting();
    }, { danger: true });
    return h("li", {}, h("button.link", { type: "button", onclick: () => this.show(dataset) }, name),
      h("span.hint", {}, ` ${t("upload.rows", { n: dataset.rows })} · ${date(dataset.created_at)} `),
      h("button.quiet.small", { type: "button", "aria-label": t("version.of", { what: t("version.delete"), ref: name }), onclick: remove }, t("version.delete")));
  }

  #take([file]) {
    if (!file) return;
    this.file = file;
    this.said = {};
    this.#send({});
  }

  /** Sends the file with all that has been said about it: {mapping, on_error, encoding}. */
  async #send(said) {
    this.said = { ...this.said, ...said };
    this.onDataset(null);
    replace(this.body, busy(t("upload.reading", { name: this.file.name, size: size(this.file.size) })));
    const { mapping, ...rest } = this.said;
    try {
      this.show(await upload("datasets", { file: this.file, mapping: mapping && JSON.stringify(mapping), ...rest }, { signal: this.signal }));
    } catch (problem) {
      if (!this.signal.aborted) await this.#refused(problem);
    }
  }

  async #refused(problem) {
    const codes = (problem.report?.errors ?? []).map((e) => e.code);
    const needsMapping = codes.includes("mapping_required") || codes.includes("column_missing") || problem.code === "mapping_invalid";
    const columns = needsMapping ? await columnsOf(this.file) : [];
    // Lines can be left out, a fault of the whole file cannot; the server says which it is.
    const canSkip = (problem.report?.unusable ?? 0) > 0 && problem.message.includes("on_error=skip");
    const retry = problem.offline || problem.status === 503 ? () => this.#send({}) : undefined;
    const said = canSkip ? new Problem({ detail: t("upload.refused", { n: problem.report.unusable, name: this.file.name }), code: "lines_unusable" }, 422)
      : columns.length && !codes.includes("column_missing") ? new Problem({ detail: t("mapping.needed", { name: this.file.name }) }, 422) : problem;
    replace(this.body,
      problemBox(said, { retry, actions: [
        canSkip && h("button.primary", { type: "button", onclick: () => this.#send({ on_error: "skip" }) },
          t("upload.skip", { n: problem.report.unusable })),
        this.#another(),
      ] }),
      needsMapping && this.#mappingEditor(columns, this.said.mapping ?? {}),
      codes.some((code) => IN_DOUBT.test(code)) && this.#encodingEditor(),
      problem.report && canSkip && faults(problem.report));
  }

  #another() {
    return h("button.quiet", { type: "button", onclick: () => { this.file = null; this.onDataset(null); this.#ask(); } }, t("upload.another"));
  }

  show(dataset) {
    const editable = this.file && "source" in dataset.mapping;
    replace(this.body,
      h("div.dataset-head", {}, h("div", {},
        h("strong", {}, dataset.name), " ",
        h("span.hint", {}, `${dataset.format.toUpperCase()} · ${t("upload.rows", { n: dataset.rows })}`)), this.#another()),
      editable ? this.#mappingEditor(dataset.columns, dataset.mapping) : this.#mappingText(dataset.mapping),
      reportPanel(dataset.report));
    announce(t("upload.done", { name: dataset.name, rows: number(dataset.rows) }));
    this.onDataset(dataset);
  }

  #encodingEditor() {
    const choice = select(ENCODINGS.map((name) => ({ value: name, label: t(`encoding.${name}`) })), this.said.encoding);
    return h("fieldset.mapping", {}, h("legend", {}, t("encoding.title")), field(t("encoding.label"), choice, t("encoding.hint")),
      h("p.actions", {}, h("button", { type: "button", onclick: () => this.#send({ encoding: choice.value }) }, t("encoding.apply"))));
  }

  #mappingText(mapping) {
    const text = mapping.messages ? t("mapping.messages", { column: mapping.messages })
      : mapping.source ? t("mapping.fixed", { source: mapping.source, target: mapping.target }) : "";
    return h("p.hint", {}, text);
  }

  #mappingEditor(columns, mapping) {
    const options = (empty) => [...(empty ? [{ value: "", label: t("mapping.none") }] : []), ...columns.map((c) => ({ value: c, label: c }))];
    const [first, second] = columns;
    const choose = (name, fallback) => (columns.length
      ? select(options(name === "input"), mapping[name] ?? fallback) : h("input", { value: mapping[name] ?? "" }));
    const source = choose("source", first);
    const target = choose("target", second ?? first);
    const input = choose("input", "");
    const apply = () => this.#send({ mapping: { source: source.value, target: target.value, ...(input.value && { input: input.value }) } });
    return h("fieldset.mapping", {}, h("legend", {}, t("mapping.title")),
      h("div.fields", {}, field(t("mapping.source"), source), field(t("mapping.target"), target),
        columns.length > 2 && field(t("mapping.input"), input, t("mapping.input.hint"))),
      h("p.actions", {},
        h("button", { type: "button", onclick: apply }, t("mapping.apply")),
        h("button.quiet", { type: "button", onclick: () => { [source.value, target.value] = [target.value, source.value]; apply(); } }, t("mapping.swap"))));
  }
}

/** The names of a text file's columns by its first line or object; empty if that does not tell. */
async function columnsOf(file) {
  const head = await file.slice(0, HEAD_BYTES).text();
  if (/^\s*<|^PAR1|\0/.test(head)) return []; // TMX, Parquet
  const start = head.replace(/^\uFEFF?\s*\[?\s*/, "");
  if (start.startsWith("{")) {
    const line = start.split(/\r?\n/)[0].replace(/,\s*$/, "");
    try {
      return Object.keys(JSON.parse(line));
    } catch {
      return [...new Set([...start.split("}")[0].matchAll(/"([^"\\]+)"\s*:/g)].map((m) => m[1]))];
    }
  }
  const line = head.replace(/^\uFEFF/, "").split(/\r?\n/)[0];
  const delimiter = ["\t", ";", ","].find((d) => line.includes(d));
  return delimiter ? line.split(delimiter).map((c) => c.replace(/^"|"$/g, "")) : [];
}
