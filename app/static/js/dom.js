// Elements. Text becomes text nodes and nothing else, so whatever a dataset or a log holds stays text.

const SVG = "http://www.w3.org/2000/svg";

/** h("button.primary", {onclick, disabled}, "Start"): an element with its classes, properties and children. */
export function h(name, props, ...children) {
  const [tag, ...classes] = name.split(".");
  return build(document.createElement(tag), classes, props, children);
}

/** The same for SVG. */
export function svg(name, props, ...children) {
  const [tag, ...classes] = name.split(".");
  return build(document.createElementNS(SVG, tag), classes, props, children);
}

function build(element, classes, props, children) {
  if (classes.length) element.classList.add(...classes);
  for (const [key, value] of Object.entries(props ?? {})) set(element, key, value);
  return append(element, ...children);
}

function set(element, key, value) {
  if (value === undefined || value === null || value === false) return;
  if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
  else if (key === "class") element.classList.add(...value.split(" ").filter(Boolean));
  else if (key === "value" && "value" in element) element.value = value;
  else element.setAttribute(key, value === true ? "" : value);
}

/** Appends nodes, texts and lists of them; skips null, undefined and false. */
export function append(element, ...children) {
  for (const child of children.flat(Infinity)) {
    if (child === null || child === undefined || child === false) continue;
    element.append(child instanceof Node ? child : String(child));
  }
  return element;
}

export function replace(element, ...children) {
  element.replaceChildren();
  return append(element, ...children);
}

let lastId = 0;
/** An id that is new on this page, to tie labels and descriptions to what they are of. */
export const newId = (prefix) => `${prefix}-${++lastId}`;

/** A labelled control: label, control, a hint below and a place for an error. `control` gets an id if it has none. */
export function field(label, control, hint) {
  control.id ||= newId("field");
  const error = h("p.error-text", { id: `${control.id}-error`, hidden: true });
  const described = [hint && `${control.id}-hint`, error.id].filter(Boolean).join(" ");
  control.setAttribute("aria-describedby", described);
  const box = h("div.field", {},
    h("label", { for: control.id }, label), control,
    hint && h("p.hint", { id: `${control.id}-hint` }, hint), error);
  box.setError = (message) => {
    error.hidden = !message;
    error.textContent = message ?? "";
    if (message) control.setAttribute("aria-invalid", "true");
    else control.removeAttribute("aria-invalid");
  };
  return box;
}

export function select(options, value, props) {
  const element = h("select", props, options.map((o) =>
    o.options ? h("optgroup", { label: o.label }, o.options.map(option)) : option(o)));
  if (value !== undefined) element.value = value;
  return element;
}

const option = (o) => h("option", { value: o.value, disabled: o.disabled }, o.label);

let announcer;
/** Says something to those who listen to the page instead of looking at it. */
export function announce(text) {
  announcer ??= h("div.visually-hidden", { role: "status", "aria-live": "polite" });
  if (!announcer.isConnected) document.body.append(announcer);
  announcer.textContent = "";
  requestAnimationFrame(() => { announcer.textContent = text; });
}
