// What survives a reload: the view and its choices in the address, drafts in the tab, preferences in the browser.

const PREFIX = "dragoman.";

function read(storage, key) {
  try {
    return JSON.parse(storage.getItem(PREFIX + key) ?? "null");
  } catch {
    return null; // switched off, or not ours
  }
}

function write(storage, key, value) {
  try {
    if (value === null || value === undefined) storage.removeItem(PREFIX + key);
    else storage.setItem(PREFIX + key, JSON.stringify(value));
  } catch { /* switched off or full: the page works, it only forgets */ }
}

export const recall = (key) => read(localStorage, key);
export const remember = (key, value) => write(localStorage, key, value);
export const draft = (key) => read(sessionStorage, key);
export const keepDraft = (key, value) => write(sessionStorage, key, value);

function decoded(part) {
  try {
    return decodeURIComponent(part);
  } catch {
    return part; // typed by hand
  }
}

/** "#/jobs/job-1?tab=log" -> {path: ["jobs", "job-1"], params: {tab: "log"}}. */
export function where() {
  const [path, query] = location.hash.replace(/^#\/?/, "").split("?");
  return {
    path: path.split("/").filter(Boolean).map(decoded),
    params: Object.fromEntries(new URLSearchParams(query)),
  };
}

export function address(path, params = {}) {
  const kept = Object.entries(params).filter(([, v]) => v !== null && v !== undefined && v !== "");
  const query = new URLSearchParams(kept).toString();
  return `#/${path.map(encodeURIComponent).join("/")}${query && `?${query}`}`;
}

/** Changes the address without leaving the view. */
export function note(params) {
  const here = where();
  history.replaceState(null, "", address(here.path, { ...here.params, ...params }));
}
