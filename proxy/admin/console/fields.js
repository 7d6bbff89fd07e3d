// The fields of the dialogs that change something: each has an element, value(), and says what is wrong with it.

import { h } from "./dom.js";

const MAX_REASON_CHARACTERS = 200;
const UNITS = [["minutes", 60], ["hours", 3600], ["days", 86400], ["seconds", 1]];

/** Why it is done. */
export function reasonField() {
  const input = h("input", {
    id: "reason", type: "text", required: true, maxlength: MAX_REASON_CHARACTERS, autocomplete: "off",
    placeholder: "For the log: what for, which ticket", "aria-describedby": "reason-hint",
  });
  return {
    key: "reason",
    input,
    element: h(
      "div", { class: "field" },
      h("label", { for: "reason" }, "Reason"),
      input,
      h("span", { class: "hint", id: "reason-hint" }, "Written into the log with your token's name."),
    ),
    value: () => input.value.trim(),
    mistake: () => (input.value.trim() ? "" : "Say why: the reason is written into the log."),
  };
}

/** A whole number between two. */
export function numberField(key, label, { value, min, max, hint = "" }) {
  const input = h("input", { id: key, type: "number", inputmode: "numeric", min, max, step: 1, value });
  return {
    key,
    input,
    element: h("div", { class: "field" }, h("label", { for: key }, label), input, hint && h("span", { class: "hint" }, hint)),
    value: () => Number(input.value),
    mistake: () => {
      const given = input.value === "" ? NaN : Number(input.value);
      return Number.isInteger(given) && given >= min && given <= max ? "" : `${label}: a whole number from ${min} to ${max}.`;
    },
  };
}

/** One of several: [[value, label]...]. */
export function choiceField(key, label, choices, chosen) {
  const input = h(
    "select", { id: key },
    choices.map(([value, text]) => h("option", { value, selected: value === chosen }, text)),
  );
  return {
    key,
    input,
    element: h("div", { class: "field" }, h("label", { for: key }, label), input),
    value: () => input.value,
    mistake: () => (input.value ? "" : `${label}: choose one.`),
  };
}

/** Without an end, or for so long. */
export function timeField(key, label, { without, within, amount, unit = "minutes", most, limited = false }) {
  const free = h("input", { type: "radio", name: key, id: `${key}-without`, checked: !limited });
  const bound = h("input", { type: "radio", name: key, id: `${key}-within`, checked: limited });
  const input = h("input", { type: "number", inputmode: "numeric", min: 1, step: 1, value: amount, "aria-label": `${label}: how long` });
  const units = h(
    "select", { "aria-label": `${label}: unit` },
    UNITS.map(([name, seconds]) => h("option", { value: seconds, selected: name === unit }, name)),
  );
  for (const each of [input, units]) each.addEventListener("input", () => (bound.checked = true));
  const seconds = () => Number(input.value) * Number(units.value);
  return {
    key,
    input: free,
    element: h(
      "fieldset", { class: "field" },
      h("legend", {}, label),
      h("div", { class: "option" }, free, h("label", { for: `${key}-without` }, without)),
      h("div", { class: "option" }, bound, h("label", { for: `${key}-within` }, within), input, units),
    ),
    value: () => (bound.checked ? seconds() : null),
    mistake: () => (!bound.checked || (seconds() >= 1 && seconds() <= most) ? "" : `${label}: from 1 second to ${most / 86400} days.`),
  };
}
