// The adapters that are served: versions with their scores, which is current, who gets which, in and out.

import { del, get, put, saveFile } from "../api.js";
import { field, h, replace } from "../dom.js";
import { compact, date, number, pairName, size, t } from "../i18n.js";
import { busy, emptyState, modal, problemBox, reader, toast } from "../notices.js";
import { address } from "../store.js";
import { evaluationPanel, samplesPanel } from "./evaluation_panel.js";
import { openImport } from "./import_dialog.js";
import { makeCurrent } from "./promotion.js";

const at = (name, version) => `adapters/${encodeURIComponent(name)}${version ? `/versions/${version}` : ""}`;

export function mount(root, { path, signal }) {
  const body = h("div", {}, busy(t("adapters.loading")));
  const bring = h("button", { type: "button", onclick: () => openImport(load) }, t("import.open"));
  replace(root, h("header.view-head", {}, h("h1", {}, t("nav.adapters")), h("p.actions", {}, bring)), body);

  let asked = 0;
  async function load() {
    const turn = ++asked;
    try {
      const adapters = await get("adapters", { signal });
      if (turn !== asked) return; // a newer answer is on its way
      const focused = document.activeElement?.closest("details.adapter")?.dataset.name;
      const open = new Set([...body.querySelectorAll("details.adapter[open]")].map((d) => d.dataset.name));
      if (path[0]) open.add(path[0]);
      replace(body, adapters.length ? adapters.map((a) => adapterBox(a, { reload: load, signal, open: open.has(a.name) || adapters.length === 1 }))
        : emptyState(t("adapters.empty"), t("adapters.empty.text"), h("a.button.primary", { href: address(["train"]) }, t("adapters.empty.do"))));
      if (focused) body.querySelector(`details[data-name="${CSS.escape(focused)}"] > summary`)?.focus();
    } catch (problem) {
      if (!signal.aborted && turn === asked) replace(body, problemBox(problem, { retry: load }));
    }
  }

  load();
  addEventListener("dragoman:back", load, { signal });
}

function adapterBox(adapter, { reload, signal, open }) {
  const pair = pairName(adapter.source, adapter.target);
  const versions = h("div.versions");
  const box = h("details.adapter", { "data-name": adapter.name, open },
    h("summary", {},
      h("span.adapter-name", {}, adapter.name),
      pair && h("span.pair", {}, pair),
      h("span.tag", {}, adapter.current ? t("adapters.current", { version: adapter.current }) : t("adapters.no_current")),
      h("span.hint", {}, t("adapters.versions", { n: adapter.versions.length })),
      adapter.description && h("span.description", {}, adapter.description)),
    versions);
  let loaded = false;
  const fill = async () => {
    if (!box.open || loaded) return;
    loaded = true;
    replace(versions, busy(t("adapters.reading")));
    try {
      const [now, ...found] = await Promise.all([
        get(at(adapter.name), { signal }), ...[...adapter.versions].reverse().map((n) => get(at(adapter.name, n), { signal }).catch((problem) => ({ version: n, problem }))),
      ]);
      if (!Object.keys(now.traffic ?? {}).length) now.traffic = null;
      replace(versions, versionTable(now, found, { reload, signal }), suggestionsLink(now), now.versions.length > 1 && trafficForm(now, reload));
    } catch (problem) {
      loaded = false;
      if (!signal.aborted) replace(versions, problemBox(problem, { retry: fill }));
    }
  };
  box.addEventListener("toggle", fill);
  if (open) fill();
  return box;
}

function versionTable(adapter, versions, context) {
  const columns = ["version", "created", "rows", "bleu", "chrf", "size", "actions"];
  const share = (n) => adapter.traffic?.[n];
  return h("div.scroll", { tabindex: 0, role: "region", "aria-label": t("adapters.versions_of", { name: adapter.name }) }, h("table.stack", {},
    h("thead", {}, h("tr", {}, columns.map((c) => h(["rows", "bleu", "chrf", "size"].includes(c) ? "th.num" : "th", { scope: "col" }, t(`version.${c}`))))),
    h("tbody", {}, versions.map(({ version, seal, size_bytes: bytes, problem }) => h("tr", { "data-version": version },
      h("th", { scope: "row" }, `${adapter.name}@${version}`, " ", adapter.current === version && h("span.tag.accent", {}, t("version.is_current")),
        share(version) !== undefined && h("span.tag", {}, t("version.share", { share: String(Number((100 * share(version)).toPrecision(4))) }))),
      problem ? h("td", { colspan: columns.length - 2 }, problem.message) : [
        cell("created", date(seal.created_at), "td.nowrap"),
        cell("rows", seal.dataset_rows ? number(seal.dataset_rows) : "–"),
        cell("bleu", number(seal.evaluation?.candidate?.bleu, 1)),
        cell("chrf", number(seal.evaluation?.candidate?.chrf, 1)),
        cell("size", size(bytes)),
      ],
      h("td", {}, versionActions(adapter, version, seal, context)))))));
}

const cell = (column, content, kind = "td.num.nowrap") => h(kind, { "data-label": t(`version.${column}`) }, content);

function versionActions(adapter, version, seal, { reload }) {
  const ref = `${adapter.name}@${version}`;
  const isCurrent = adapter.current === version;
  const busyElsewhere = isCurrent || adapter.traffic?.[version] !== undefined;
  const back = adapter.current !== null && version < adapter.current;
  const download = `${at(adapter.name, version)}/download`;
  const about = (what) => ({ "aria-label": t("version.of", { what, ref }) });
  return h("p.actions", {},
    !isCurrent && h("button.small", { type: "button", ...about(t(back ? "version.back" : "version.promote")), onclick: () => makeCurrent(adapter.name, version, reload) },
      t(back ? "version.back" : "version.promote")),
    h("a.button.small", { href: address(["translate"], { compare: [...new Set(["base", `${adapter.name}@${adapter.current ?? version}`, ref])].join(",") }), ...about(t("version.compare")) }, t("version.compare")),
    seal && h("button.quiet.small", { type: "button", ...about(t("version.details")), onclick: () => showDetails(ref, seal) }, t("version.details")),
    h("a.button.quiet.small", { href: download, download: `${adapter.name}-${version}.zip`, ...about(t("version.download")), onclick: (e) => save(e, download, `${adapter.name}-${version}.zip`) }, t("version.download")),
    !busyElsewhere && h("button.quiet.small", {
      type: "button", ...about(t("version.delete")), onclick: () => modal(t("version.delete.title", { ref }), h("p", {}, t("version.delete.text")), t("version.delete"), async () => {
        await del(at(adapter.name, version));
        toast(t("version.deleted", { ref }));
        reload();
      }, { danger: true }),
    }, t("version.delete")));
}

const save = (event, path, filename) => saveFile(event, path, filename).catch((problem) => toast(problem.message));

/** What readers held to be better: a file to train on. */
function suggestionsLink({ name }) {
  const [path, filename] = [`suggestions?adapter=${encodeURIComponent(name)}`, `${name}-suggestions.jsonl`];
  return h("p.actions", {}, h("a.button.quiet.small", {
    href: path, download: filename, "aria-label": t("version.of", { what: t("adapters.suggestions"), ref: name }), onclick: (e) => save(e, path, filename),
  }, t("adapters.suggestions")),
    h("span.hint", {}, t("adapters.suggestions.hint")));
}

function showDetails(ref, seal) {
  const facts = {
    base_model: seal.base_model, template: seal.prompt.template, system: seal.prompt.system, rank: seal.config?.lora?.r,
    train_loss: seal.metrics?.final_loss !== undefined ? compact(seal.metrics.final_loss) : null, sha256: seal.content_sha256,
  };
  const content = h("div.details", {},
    h("dl.facts", {}, Object.entries(facts).filter(([, v]) => v !== null && v !== undefined && v !== "").map(([k, v]) => h("div", {}, h("dt", {}, t(`seal.${k}`)), h("dd", {}, String(v))))),
    seal.job_id && h("p", {}, h("a", { href: address(["jobs", seal.job_id]) }, t("seal.job"))),
    seal.evaluation ? [evaluationPanel(seal.evaluation, { adapter: ref.split("@")[0], adapter_version: ref.split("@")[1] }), samplesPanel(seal.evaluation)] : h("p", {}, t("seal.not_judged")));
  reader(ref, content);
}

/** Shares of those who ask for the adapter by its name alone. */
function trafficForm(adapter, reload) {
  const inputs = new Map(adapter.versions.map((n) => [n, h("input", {
    type: "number", min: 0, max: 100, step: "any", value: Math.round(1000 * (adapter.traffic?.[n] ?? (!adapter.traffic && n === adapter.current ? 1 : 0))) / 10, oninput: () => check(),
  })]));
  const sum = h("span.hint", { role: "status" });
  const fault = h("div");
  const save = h("button", { type: "submit" }, t("traffic.save"));
  const shares = () => [...inputs].map(([n, input]) => [n, input.valueAsNumber || 0]);
  function check() {
    const total = shares().reduce((s, [, v]) => s + v, 0);
    save.disabled = Math.abs(total - 100) > 1e-6;
    sum.textContent = t("traffic.sum", { sum: number(total, 1) });
  }
  check();
  const send = async (weights) => {
    const path = `${at(adapter.name)}/traffic`;
    try {
      await (weights ? put(path, weights) : del(path));
      toast(t("traffic.saved"));
      reload();
    } catch (problem) {
      replace(fault, problemBox(problem));
    }
  };
  return h("details.group", { open: Boolean(adapter.traffic) }, h("summary", {}, t("traffic.title")), h("form", {
    onsubmit: (e) => { e.preventDefault(); send(Object.fromEntries(shares().filter(([, v]) => v > 0).map(([n, v]) => [n, v / 100]))); },
  },
    h("p.hint", {}, t("traffic.text", { name: adapter.name })),
    h("div.fields", {}, [...inputs].map(([n, input]) => field(t("traffic.share", { ref: `${adapter.name}@${n}` }), input))),
    fault,
    h("p.actions", {}, save, adapter.traffic && h("button.quiet", { type: "button", onclick: () => send(null) }, t("traffic.clear")), sum)));
}
