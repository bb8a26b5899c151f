// The frame around the views: address -> view, navigation, language, appearance, and what the connection is doing.

import * as api from "./api.js";
import { announce, field, h, replace, select } from "./dom.js";
import { LANGUAGES, language, setLanguage, t } from "./i18n.js";
import { modal } from "./notices.js";
import { pause } from "./sse.js";
import { address, recall, remember, where } from "./store.js";
import * as adapters from "./views/adapters.js";
import * as job from "./views/job.js";
import * as jobs from "./views/jobs.js";
import * as train from "./views/train.js";
import * as translate from "./views/translate.js";

const VIEWS = { translate, train, jobs, adapters };
const THEMES = ["auto", "light", "dark"];
const CHECK_MS = 2_000;

const banner = h("div.banner", { role: "status", hidden: true });
let main = h("main", { id: "main", tabindex: -1 });
let leaving = new AbortController();
let checking = false;
let isOwed = false; // the server did not answer, and the view wants to ask again

function show({ moved = false } = {}) {
  leaving.abort();
  leaving = new AbortController();
  for (const dialog of document.querySelectorAll("dialog[open]")) dialog.close(); // it was about the old view
  const { path, params } = where();
  const name = Object.hasOwn(VIEWS, path[0]) ? path[0] : "translate";
  const view = name === "jobs" && path[1] ? job : VIEWS[name];
  // A new element each time: what an old view still has to say falls on nothing.
  const fresh = h("main", { id: "main", tabindex: -1, "data-view": name });
  main.replaceWith(fresh);
  main = fresh;
  document.title = `${t(`nav.${name}`)} · Dragoman`;
  for (const link of document.querySelectorAll("nav a[data-view]")) {
    if (link.dataset.view === name) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  view.mount(main, { path: path.slice(1), params, signal: leaving.signal });
  if (moved) {
    main.focus({ preventScroll: true });
    scrollTo(0, 0);
    announce(document.title);
  }
}

function frame() {
  const link = (name) => h("a", { href: address([name]), "data-view": name }, t(`nav.${name}`));
  const themes = select(THEMES.map((value) => ({ value, label: t(`theme.${value}`) })), recall("theme") ?? "auto", {
    "aria-label": t("theme.label"), onchange: (e) => { remember("theme", e.target.value); applyTheme(); },
  });
  const languages = select(LANGUAGES, language, {
    "aria-label": t("language.label"),
    onchange: (e) => { setLanguage(e.target.value); frame(); show(); document.getElementById("language").focus(); },
    id: "language",
  });
  replace(document.body,
    h("a.skip", { href: "#main", onclick: (e) => { e.preventDefault(); main.focus(); } }, t("nav.skip")),
    h("header.top", {},
      h("a.brand", { href: address(["translate"]) }, "Dragoman"),
      h("nav", { "aria-label": t("nav.label") }, Object.keys(VIEWS).map(link)),
      h("div.tools", {}, h("a", { href: "docs" }, "API"), languages, themes)),
    banner, main);
}

function applyTheme() {
  const theme = recall("theme") ?? "auto";
  if (theme === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
}

/** Says what is missing until all is there, then shows the view anew if it could not be shown before. */
async function watchConnection() {
  if (checking) return;
  checking = true;
  let away = false;
  for (;;) {
    const found = await fetch("ready").then((r) => r.json()).catch(() => null);
    const missing = Object.values(found?.checks ?? {}).filter((c) => !c.ok).map((c) => c.reason);
    if (found && found.status === "ok") break;
    away = isOwed = true;
    banner.hidden = false;
    replace(banner, h("span.pulse", { "aria-hidden": "true" }), found ? t("banner.starting", { why: missing.join("; ") }) : t("banner.lost"));
    await pause(CHECK_MS);
  }
  if (isOwed && !away) await pause(CHECK_MS); // what fails though the server is there is not asked for without a rest
  checking = false;
  banner.hidden = true;
  if (!isOwed) return;
  isOwed = false;
  dispatchEvent(new Event("dragoman:back"));
}

function askForKey() {
  if (document.querySelector("dialog[open]")) return;
  const key = h("input", { type: "password", autocomplete: "off", required: true, pattern: "\\s*[!-~]+\\s*" }); // what a header can hold
  modal(t("key.title"), [h("p", {}, t("key.text")), field(t("key.label"), key)], t("key.send"), () => {
    api.rememberKey(key.value.trim());
    show();
  });
}

applyTheme();
frame();
show();
watchConnection();
addEventListener("hashchange", () => show({ moved: true }));
api.connection.addEventListener("lost", () => { isOwed = true; watchConnection(); });
api.connection.addEventListener("unauthorised", askForKey);
