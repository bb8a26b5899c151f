// One form control for one JSON schema. Each reads undefined where it is left to the server.

import { h, select } from "../dom.js";
import { has, t } from "../i18n.js";

const AUTO = "";
const MAX_LINE = 200; // texts that may be longer get several lines

/** {element, read(), write(value), fault() -> message or "", isGroup}. */
export function makeControl(schema, onChange) {
  const options = schema.anyOf ?? [schema];
  const choices = options.flatMap(listed);
  const numeric = options.filter((o) => (o.type === "number" || o.type === "integer") && o.const === undefined);
  if (numeric.length) return numberControl(numeric, options, schema, onChange);
  const array = options.find((o) => o.type === "array");
  if (array?.items?.enum) return checkboxes(array.items.enum, onChange);
  if (array) return wordsControl(choices, onChange);
  if (choices.length) return selectControl(choices, options.some((o) => o.type === "null"), onChange);
  return textControl(options, onChange);
}

function listed(option) {
  if (option.enum) return option.enum;
  if (option.const !== undefined) return [option.const];
  return option.type === "boolean" ? [true, false] : [];
}

const choiceLabel = (value) => (typeof value === "boolean" ? t(value ? "yes" : "no") : has(`choice.${value}`) ? t(`choice.${value}`) : String(value));

function selectControl(choices, nullable, onChange) {
  const options = choices.map((value, i) => ({ value: String(i), label: choiceLabel(value) }));
  const element = select(nullable ? [{ value: AUTO, label: t("auto") }, ...options] : options, undefined, { onchange: onChange });
  element.disabled = options.length === 1 && !nullable;
  return {
    element,
    read: () => (element.value === AUTO ? undefined : choices[Number(element.value)]),
    write: (value) => { element.value = value === undefined || value === null ? AUTO : String(choices.indexOf(value)); },
    fault: () => "",
  };
}

/** An integer or a number; what it is when empty is the server's affair. */
function numberControl(kinds, options, schema, onChange) {
  const whole = kinds.every((k) => k.type === "integer");
  const least = Math.min(...options.map((o) => o.const ?? o.minimum ?? o.exclusiveMinimum ?? -Infinity));
  const most = Math.max(...kinds.map((k) => k.maximum ?? k.exclusiveMaximum ?? Infinity));
  const element = h("input", {
    type: "number", step: whole ? 1 : "any", min: Number.isFinite(least) ? least : undefined, max: Number.isFinite(most) ? most : undefined,
    placeholder: schema.default ?? t("auto"), oninput: onChange,
  });
  return {
    element,
    read: () => (element.value === "" || Number.isNaN(element.valueAsNumber) ? undefined : element.valueAsNumber),
    write: (value) => { element.value = value ?? ""; },
    fault: () => (element.checkValidity() ? "" : element.validationMessage),
  };
}

/** "all-linear" or names with commas between them. */
function wordsControl(choices, onChange) {
  const element = h("input", { spellcheck: "false", autocomplete: "off", oninput: onChange });
  return {
    element,
    read: () => {
      const words = element.value.split(/[\s,]+/).filter(Boolean);
      if (!words.length) return undefined;
      return words.length === 1 && choices.includes(words[0]) ? words[0] : words;
    },
    write: (value) => { element.value = Array.isArray(value) ? value.join(", ") : value ?? ""; },
    fault: () => "",
  };
}

function checkboxes(values, onChange) {
  const boxes = values.map((value) => h("input", { type: "checkbox", value, onchange: onChange }));
  return {
    isGroup: true,
    element: h("div.checks", { role: "group" }, boxes.map((box, i) => h("label", {}, box, values[i]))),
    read: () => boxes.filter((b) => b.checked).map((b) => b.value),
    write: (value) => { for (const box of boxes) box.checked = (value ?? []).includes(box.value); },
    fault: () => "",
  };
}

function textControl(options, onChange) {
  const longest = Math.max(...options.map((o) => o.maxLength ?? 0));
  const element = h(longest > MAX_LINE ? "textarea" : "input", { maxlength: longest || undefined, oninput: onChange });
  return {
    element,
    read: () => (element.value === "" ? undefined : element.value),
    write: (value) => { element.value = value ?? ""; },
    fault: () => "",
  };
}
