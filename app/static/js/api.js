// Calls of the public API. Every failure is a Problem whose message can be shown as it is.

import { t } from "./i18n.js";
import { draft, keepDraft } from "./store.js";

/** An RFC 9457 answer, or no answer at all (status 0). */
export class Problem extends Error {
  constructor(body, status) {
    super(body.detail ?? t("error.status", { status }));
    this.status = status;
    this.code = body.code ?? "http_error";
    this.errors = body.errors ?? [];
    this.report = body.report ?? null;
    this.body = body;
  }

  get offline() {
    return this.status === 0;
  }
}

export const connection = new EventTarget(); // "lost" and "unauthorised", for the page's frame

export const authorization = () => {
  const key = draft("api-key");
  return key ? { Authorization: `Bearer ${key}` } : {};
};

/** fetch that raises Problem. Returns the Response. */
export async function request(path, { headers, ...options } = {}) {
  let response;
  try {
    response = await fetch(path, { ...options, headers: { ...headers, ...authorization() } });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    connection.dispatchEvent(new Event("lost"));
    throw new Problem({ detail: t("error.offline"), code: "offline" }, 0);
  }
  if (response.ok) return response;
  if (response.status === 401) connection.dispatchEvent(new Event("unauthorised"));
  throw new Problem(await response.json().catch(() => ({})), response.status);
}

async function json(path, options) {
  const response = await request(path, options);
  return response.status === 204 ? null : response.json();
}

const withBody = (method) => (path, body, options = {}) => json(path, {
  method,
  ...options,
  headers: { "Content-Type": "application/json", ...options.headers },
  body: JSON.stringify(body),
});

export const get = (path, options) => json(path, options);
export const post = withBody("POST");
export const put = withBody("PUT");
export const del = (path) => json(path, { method: "DELETE" });
export const text = async (path, options) => (await request(path, options)).text();

/** Sends a form with files. `values` without a value are left out. */
export function upload(path, values, options) {
  const form = new FormData();
  for (const [name, value] of Object.entries(values)) {
    if (value !== null && value !== undefined && value !== "") form.append(name, value);
  }
  return json(path, { method: "POST", body: form, ...options });
}

/** A link's download, by fetch where a key must go with it. Raises Problem. */
export async function saveFile(event, path, filename) {
  if (!authorization().Authorization) return; // the link does it
  event.preventDefault();
  const blob = await (await request(path)).blob();
  const link = Object.assign(document.createElement("a"), { href: URL.createObjectURL(blob), download: filename });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

export const rememberKey = (key) => keepDraft("api-key", key);
