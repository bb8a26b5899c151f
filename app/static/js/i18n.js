// The language of the interface: texts, numbers, dates, durations.

import en from "./lang/en.js";
import zh from "./lang/zh.js";
import { remember, recall } from "./store.js";

const TEXTS = { en, zh };
export const LANGUAGES = [{ value: "en", label: "English" }, { value: "zh", label: "中文" }];

export let language = pick();
document.documentElement.lang = language === "zh" ? "zh-Hans" : "en";

function pick() {
  const kept = recall("language");
  if (kept in TEXTS) return kept;
  return navigator.languages.map((tag) => tag.slice(0, 2)).find((tag) => tag in TEXTS) ?? "en";
}

export function setLanguage(wanted) {
  language = wanted;
  remember("language", wanted);
  document.documentElement.lang = wanted === "zh" ? "zh-Hans" : "en";
}

/** The text named `key`, with {name} replaced; "one row|{n} rows" is chosen by `n`. */
export function t(key, values = {}) {
  let text = TEXTS[language][key] ?? en[key] ?? key;
  if (text.includes("|") && "n" in values) {
    const [one, many] = text.split("|");
    text = new Intl.PluralRules(language).select(values.n) === "one" && language === "en" ? one : many;
  }
  return text.replace(/\{(\w+)\}/g, (whole, name) => {
    const value = values[name];
    return value === undefined ? whole : typeof value === "number" ? number(value) : value;
  });
}

export const has = (key) => key in TEXTS[language] || key in en;

export function number(value, digits = 0) {
  if (value === null || value === undefined) return "–";
  return new Intl.NumberFormat(language, { maximumFractionDigits: digits, minimumFractionDigits: digits }).format(rounded(value, digits));
}

/**
 * As Python's format() rounds, so that a figure has the same digits here, in the server's sentences and on the command
 * line: by what the float is, and a tie to the even digit. Intl goes by how it is written, and away from zero.
 */
function rounded(value, digits) {
  const text = value.toFixed(digits); // exact, but for ties
  const isTie = Math.abs(value * 2 ** (digits + 1)) % 2 === 1;
  return Number(text) - (isTie && text.at(-1) % 2 ? Math.sign(value) * 10 ** -digits : 0) + 0; // + 0: no minus before a zero
}

/** Few digits, whatever the size: 5.84, 0.00071, 12,300. */
export function compact(value) {
  if (value === null || value === undefined) return "–";
  if (value !== 0 && (Math.abs(value) < 0.001 || Math.abs(value) >= 1e6)) return value.toExponential(1);
  return new Intl.NumberFormat(language, { maximumSignificantDigits: Math.abs(value) >= 1000 ? 6 : 3 }).format(value);
}

export function date(text) {
  return new Intl.DateTimeFormat(language, { dateStyle: "medium", timeStyle: "short" }).format(new Date(text));
}

export function duration(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  const total = Math.max(0, Math.round(seconds));
  const [hours, minutes] = [Math.floor(total / 3600), Math.floor((total % 3600) / 60)];
  if (hours) return t("time.hours", { h: hours, m: minutes });
  if (minutes) return t("time.minutes", { m: minutes, s: total % 60 });
  return t("time.seconds", { s: total });
}

export function size(bytes) {
  const units = ["B", "KB", "MB", "GB"];
  let power = 0;
  while (bytes >= 1000 && power < 3) { bytes /= 1000; power++; }
  return `${number(bytes, power && bytes < 100 ? 1 : 0)} ${units[power]}`;
}

/** The name of a language by its tag; a private part is shown as it is: "en-x-yoda" -> "English (yoda)". */
export function languageName(tag) {
  if (!tag || tag === "und") return t("language.unknown");
  const [known, own] = tag.split("-x-");
  let name = known;
  if (has(`language.${known}`)) name = t(`language.${known}`);
  else try {
    name = new Intl.DisplayNames([language], { type: "language" }).of(known);
  } catch { /* not a tag that the browser knows: shown as it is */ }
  return own ? `${name} (${own})` : name;
}

/** "English → German"; empty where neither is told. */
export const pairName = (source, target) => (source === "und" && target === "und" ? "" : `${languageName(source)} → ${languageName(target)}`);
