// What the page says back: problems in place, dialogs, copied and done.

import { announce, h, newId, replace } from "./dom.js";
import { has, t } from "./i18n.js";

/** A box that explains a Problem: what happened, what to do, and a way to do it. */
export function problemBox(problem, { retry, retryLabel, actions = [] } = {}) {
  const advice = has(`advice.${problem.code}`) && t(`advice.${problem.code}`);
  return h("div.notice.error", { role: "alert" },
    h("p", {}, problem.message),
    advice && h("p", {}, advice),
    (retry || actions.length > 0) && h("p.actions", {},
      retry && h("button", { type: "button", onclick: retry }, retryLabel ?? t("retry")), actions));
}

export const note = (kind, ...children) => h(`div.notice.${kind}`, {}, h("p", {}, ...children));

/** What is being waited for; never a spinner alone. */
export const busy = (reason) => h("p.busy", { role: "status" }, h("span.pulse", { "aria-hidden": "true" }), reason);

export const emptyState = (title, text, ...actions) => h("div.empty-state", {},
  h("h2", {}, title), h("p", {}, text), actions.length > 0 && h("p.actions", {}, actions));

/** The browser gives the focus back to what opened the dialog, unless that is gone. */
function close(dialog) {
  dialog.remove();
  if (document.activeElement === document.body) document.getElementById("main").focus({ preventScroll: true });
}

/** A dialog to read. */
export function reader(title, content) {
  const titleId = newId("dialog");
  const dialog = h("dialog", { "aria-labelledby": titleId, onclose: () => close(dialog) },
    h("form", { method: "dialog" }, h("h2", { id: titleId }, title), content,
      h("p.actions", {}, h("button", { type: "button", onclick: () => dialog.close() }, t("close")))));
  document.body.append(dialog);
  dialog.showModal();
}

/** A dialog with one thing to do. `act` may return a promise; a Problem that it raises is shown and the dialog stays. */
export function modal(title, content, actLabel, act, { danger = false, dismiss = t("cancel") } = {}) {
  const titleId = newId("dialog");
  const fault = h("div");
  const button = h(danger ? "button.danger" : "button.primary", { type: "submit" }, actLabel);
  const dialog = h("dialog", { "aria-labelledby": titleId, onclose: () => close(dialog) },
    h("form", {
      method: "dialog",
      onsubmit: async (event) => {
        event.preventDefault();
        button.disabled = true;
        replace(fault);
        try {
          await act();
          dialog.close();
        } catch (problem) {
          replace(fault, problemBox(problem));
        } finally {
          button.disabled = false;
        }
      },
    },
      h("h2", { id: titleId }, title), content, fault,
      h("p.actions", {}, button, h("button.quiet", { type: "button", onclick: () => dialog.close() }, dismiss))));
  document.body.append(dialog);
  dialog.showModal();
}

export function copyButton(text, label = t("copy")) {
  const button = h("button.quiet.small", {
    type: "button",
    onclick: async () => {
      await copy(text());
      button.textContent = t("copied");
      announce(t("copied"));
      setTimeout(() => { button.textContent = label; }, 1500);
    },
  }, label);
  return button;
}

async function copy(text) {
  if (navigator.clipboard) { // only where the page came over HTTPS or from this machine
    await navigator.clipboard.writeText(text);
    return;
  }
  const area = h("textarea", { value: text, readonly: true });
  document.body.append(area);
  area.select();
  document.execCommand("copy");
  area.remove();
}

let toasts;
/** A short word that something was done. */
export function toast(text) {
  toasts ??= h("div.toasts", { "aria-hidden": "true" });
  document.body.append(toasts);
  const item = h("div.toast", {}, text);
  toasts.append(item);
  announce(text);
  setTimeout(() => item.remove(), 4000);
}
