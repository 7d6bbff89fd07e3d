// Limits: what is set, and how often each was reached.

import { api } from "../api.js";
import { fill, h, note } from "../dom.js";
import { count, plain, shown } from "../format.js";
import { Table } from "../table.js";
import { poll } from "../watch.js";
import { pill, words } from "../words.js";

const EVERY_SECONDS = 5;

export const limits = {
  name: "limits",
  title: "Limits",
  letter: "l",

  mount(place) {
    const problem = h("div");
    const table = new Table({
      caption: "Limits",
      columns: [
        { label: "Limit", cell: ({ limit }) => h("span", { class: "name strong" }, shown(limit)), key: ({ limit }) => limit },
        { label: "Set to", cell: ({ value }) => setting(value), key: ({ value }) => JSON.stringify(value) },
        { label: "Reached", cell: ({ reached }) => reachedPills(reached), key: ({ reached }) => JSON.stringify(reached) },
      ],
      key: ({ limit }) => limit,
      empty: ["No limit", "None is set; limits belong under limits in the settings."],
    });
    const asking = poll(EVERY_SECONDS, () => api.get("limits"), show, failed);

    function show(answer) {
      fill(problem);
      table.update(answer.limits);
    }
    function failed({ status, message }) {
      if (status) fill(problem, note("bad", `Limits cannot be shown: ${shown(message)}`));
    }
    place.append(h("p", { class: "summary" }, "How often each was reached since the proxy began, by what was done. Whom it concerned is told by events and by the log."), problem, table.element);
    return { stop: asking.stop };
  },
};

/** A limit's value; one with parts has a line for each. */
function setting(value) {
  if (value === null) return h("span", { class: "muted" }, "none");
  if (typeof value !== "object" || Array.isArray(value)) return plain(value);
  return Object.entries(value)
    .filter(([, part]) => part !== null)
    .map(([key, part]) => h("span", { class: "value" }, h("i", {}, words(key)), plain(part)));
}

function reachedPills(reached) {
  const times = Object.entries(reached).filter(([, many]) => many > 0);
  if (!times.length) return h("span", { class: "muted" }, "never");
  return times.map(([action, many]) => pill(`${words(action)} ${count(many)}`, "warn"));
}
