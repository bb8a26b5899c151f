// The same call for a program: what is on the screen, as curl and as Python.

import { authorization } from "../api.js";
import { h, newId } from "../dom.js";
import { t } from "../i18n.js";
import { copyButton } from "../notices.js";

const origin = () => location.origin + location.pathname.replace(/\/$/, "");
const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;

function curl(body) {
  const key = authorization().Authorization ? " \\\n  -H 'authorization: Bearer YOUR_KEY'" : "";
  return `curl -s ${origin()}/translate \\\n  -H 'content-type: application/json'${key} \\\n  -d ${quoted(JSON.stringify(body))}`;
}

// The body holds texts and numbers alone, which JSON and Python write alike.
function python(body) {
  const key = authorization().Authorization ? '\n    headers={"Authorization": "Bearer YOUR_KEY"},' : "";
  const values = Object.entries(body).map(([k, v]) => `        ${JSON.stringify(k)}: ${JSON.stringify(v)},`).join("\n");
  return `import httpx\n\nanswer = httpx.post(\n    "${origin()}/translate",${key}\n    json={\n${values}\n    },\n    timeout=60,\n)\nprint(answer.json()["translatedText"])`;
}

/** `body`: that of POST /translate. */
export function callPanel(body) {
  return h("div.call-panel", {}, [["curl", curl(body)], ["Python", python(body)]].map(([name, code]) => {
    const id = newId("call");
    return h("div", {},
      h("header", {}, h("h3", { id }, name), copyButton(() => code)),
      h("pre", { tabindex: 0, role: "region", "aria-labelledby": id }, h("code", {}, code)));
  }));
}
