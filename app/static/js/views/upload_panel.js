// A file becomes a dataset: drop it, see what was found in it, say which column is which, decide about faulty lines.

import { get, Problem, upload } from "../api.js";
import { announce, field, h, replace, select } from "../dom.js";
import { date, number, size, t } from "../i18n.js";
import { busy, problemBox } from "../notices.js";
import { faults, reportPanel } from "./dataset_report.js";

const ACCEPT = ".csv,.tsv,.jsonl,.ndjson,.json,.tmx,.parquet,.txt";
const MAX_LISTED = 6;
const HEAD_BYTES = 64 * 1024;

export class UploadPanel {
  /** `onDataset` is told each dataset that is there, and null when another file is wanted. */
  constructor({ signal, onDataset }) {
    Object.assign(this, { signal, onDataset, file: null });
    this.body = h("div");
    this.element = h("section.step", { "aria-labelledby": "file-title" }, h("h2", { id: "file-title" }, t("upload.title")), this.body);
    this.#ask();
  }

  #ask() {
    const input = h("input.visually-hidden", { type: "file", accept: ACCEPT, id: "file", onchange: () => input.files[0] && this.send(input.files[0]) });
    const zone = h("label.dropzone", {
      for: "file",
      ondragover: (e) => { e.preventDefault(); zone.classList.add("over"); },
      ondragleave: () => zone.classList.remove("over"),
      ondrop: (e) => {
        e.preventDefault();
        zone.classList.remove("over");
        if (e.dataTransfer.files[0]) this.send(e.dataTransfer.files[0]);
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
    if (!datasets.length) return;
    replace(this.existing, h("h3", {}, t("upload.existing")), h("ul.plain", {}, datasets.slice(0, MAX_LISTED).map((d) =>
      h("li", {}, h("button.link", { type: "button", onclick: () => this.show(d) }, d.name),
        h("span.hint", {}, ` ${t("upload.rows", { n: d.rows })} · ${date(d.created_at)}`)))));
  }

  async send(file, { mapping, skip } = {}) {
    this.file = file;
    this.onDataset(null);
    replace(this.body, busy(t("upload.reading", { name: file.name, size: size(file.size) })));
    try {
      const values = { file, mapping: mapping && JSON.stringify(mapping), on_error: skip ? "skip" : undefined };
      this.show(await upload("datasets", values, { signal: this.signal }));
    } catch (problem) {
      if (this.signal.aborted) return;
      await this.#refused(problem, { mapping, skip });
    }
  }

  async #refused(problem, { mapping, skip }) {
    const codes = (problem.report?.errors ?? []).map((e) => e.code);
    const needsMapping = codes.includes("mapping_required") || codes.includes("column_missing") || problem.code === "mapping_invalid";
    const columns = needsMapping ? await columnsOf(this.file) : [];
    // Lines can be left out; a fault of the whole file cannot.
    const canSkip = !skip && problem.code === "dataset_invalid" && !needsMapping && (problem.report?.unusable ?? 0) > 0;
    const retry = problem.offline || problem.status === 503 ? () => this.send(this.file, { mapping, skip }) : undefined;
    const said = canSkip ? new Problem({ detail: t("upload.refused", { n: problem.report.unusable, name: this.file.name }), code: "lines_unusable" }, 422)
      : needsMapping && !codes.includes("column_missing") ? new Problem({ detail: t("mapping.needed", { name: this.file.name }) }, 422) : problem;
    replace(this.body,
      problemBox(said, { retry, actions: [
        canSkip && h("button.primary", { type: "button", onclick: () => this.send(this.file, { mapping, skip: true }) },
          t("upload.skip", { n: problem.report.unusable })),
        this.#another(),
      ] }),
      needsMapping && this.#mappingEditor(columns, mapping ?? {}),
      problem.report && !needsMapping && faults(problem.report));
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
    const apply = () => this.send(this.file, { mapping: { source: source.value, target: target.value, ...(input.value && { input: input.value }) } });
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
