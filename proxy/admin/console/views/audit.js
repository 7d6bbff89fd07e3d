// Audit: who changed what, and why.

import { h } from "../dom.js";
import { clock, shown } from "../format.js";
import { Table } from "../table.js";
import { watch } from "../watch.js";
import { pill } from "../words.js";
import { details } from "./events.js";

const HIDDEN = new Set(["time", "kind", "event", "verb", "caller", "reason"]);

export const audit = {
  name: "audit",
  title: "Audit",
  letter: "a",

  mount(place) {
    const numbers = new WeakMap();
    let made = 0;
    const known = (event) => numbers.get(event) ?? (numbers.set(event, (made += 1)), made);
    const table = new Table({
      caption: "Changes, the newest first",
      columns: [
        { label: "Time", cell: ({ time }) => clock(time) },
        { label: "Who", cell: ({ caller }) => h("span", { class: "name strong" }, shown(caller ?? "–")), key: ({ caller }) => caller },
        { label: "What", cell: ({ verb }) => pill(shown(verb ?? "change"), "plain"), key: ({ verb }) => verb },
        { label: "Of what", cell: (event) => details(event, HIDDEN), key: () => "" },
        { label: "Why", cell: ({ reason }) => shown(reason ?? "–") },
      ],
      key: known,
      empty: ["No change since this page was opened", "What administrators change by any door comes up here at once. All that was before is in the log, as admin.changed."],
    });
    const show = () => table.update(watch.audit);
    watch.addEventListener("audit", show);
    place.append(h("p", { class: "summary" }, "Changes by the console, the command line and the API, since this page was opened. The log keeps them all: look for admin.changed."), table.element);
    show();
    return { stop: () => watch.removeEventListener("audit", show) };
  },
};
