// Elements, made one by one: what comes from the proxy becomes text, never markup, for names come from strangers.

const SVG = "http://www.w3.org/2000/svg";

/** An element with attributes, listeners (`on`) and children: nodes, texts, lists of them, or null. */
export function h(tag, attributes = {}, ...children) {
  return dress(document.createElement(tag), attributes, children);
}

/** The same, of SVG. */
export function svg(tag, attributes = {}, ...children) {
  return dress(document.createElementNS(SVG, tag), attributes, children);
}

function dress(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "on") {
      for (const [event, listener] of Object.entries(value)) element.addEventListener(event, listener);
    } else if (value === true) {
      element.setAttribute(name, "");
    } else if (value !== false && value !== null && value !== undefined) {
      element.setAttribute(name, String(value));
    }
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined));
  return element;
}

export const byId = (id) => document.getElementById(id);

/** Replace what an element holds. */
export function fill(element, ...children) {
  element.replaceChildren(...children.flat(Infinity).filter((child) => child !== null && child !== undefined));
}

/** Change a text only where it differs, so that screen readers hear of changes alone. */
export function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** A button that is no form's. */
export function button(label, act, attributes = {}) {
  return h("button", { type: "button", ...attributes, on: { click: act } }, label);
}

/** A box that says something: kind is "bad", "warn", "good" or "plain". */
export function note(kind, ...children) {
  return h("p", { class: `note ${kind}`, role: kind === "bad" ? "alert" : null }, ...children);
}

/** What stands where there is nothing to show. */
export function nothing(title, text) {
  return h("div", { class: "empty" }, h("strong", {}, title), h("span", {}, text));
}

/** A heading with what belongs beside it. */
export function heading(text, ...beside) {
  return h("div", { class: "heading" }, h("h2", {}, text), h("div", { class: "beside" }, ...beside));
}

/** Pairs of terms and values; a value of null is left out. */
export function facts(...pairs) {
  const told = pairs.filter(([, value]) => value !== null && value !== undefined && value !== "");
  return h("dl", { class: "facts" }, told.map(([term, value]) => h("div", {}, h("dt", {}, term), h("dd", {}, value))));
}

let toastCount = 0;

/** Say that something went well; it goes away by itself. */
export function toast(text) {
  const shown = h("p", { class: "toast", id: `toast-${(toastCount += 1)}` }, text);
  byId("toasts").append(shown);
  setTimeout(() => shown.remove(), 6000);
}
