// Settings: what is in effect, and what of it differs from the default. Secrets are not told to anybody.

import { logLevel, reload } from "../actions.js";
import { api } from "../api.js";
import { button, fill, h, heading, note, say } from "../dom.js";
import { plain, plural, shown } from "../format.js";
import { Table } from "../table.js";
import { poll, watch } from "../watch.js";

export const settings = {
  name: "settings",
  title: "Settings",
  letter: "t",

  mount(place, { beside }) {
    const problem = h("div");
    const how = h("p", { class: "summary", role: "status" });
    const find = h("input", { id: "find-key", type: "search", placeholder: "limits, drain, tls …", autocomplete: "off", spellcheck: "false", autocapitalize: "none", "data-find": true });
    const differs = new Table({
      caption: "Settings that differ from the default",
      columns: [
        { label: "Setting", cell: ({ key }) => h("code", {}, shown(key)), key: ({ key }) => key },
        { label: "Value", cell: ({ value }) => h("span", { class: "name" }, plain(value)), key: ({ value }) => JSON.stringify(value) },
        { label: "Default", cell: (record) => h("span", { class: "muted name" }, plain(record.default)), key: (record) => JSON.stringify(record.default) },
      ],
      key: ({ key }) => key,
      empty: ["All as by default", "Nothing was changed, or nothing that the search fits."],
    });
    const tree = h("div", { class: "panel tree" });
    let answer = null;
    let last = "";

    function show(given) {
      fill(problem);
      answer = given ?? answer;
      if (!answer) return;
      const wanted = find.value.trim().toLowerCase();
      const fits = ({ key }) => key.toLowerCase().includes(wanted);
      const found = answer.differs.filter(fits);
      say(how, `${plural(found.length, "setting differs", "settings differ")} from the default.`);
      differs.update(found);
      const now = JSON.stringify([answer.settings, wanted]);
      if (now !== last) fill(tree, branch(answer.settings, "", wanted));
      last = now;
    }
    function failed({ status, message }) {
      if (status) fill(problem, note("bad", `Settings cannot be shown: ${shown(message)}`));
    }

    find.addEventListener("input", () => show());
    const asking = poll(30, () => api.get("settings"), show, failed);
    if (api.operator) {
      beside.append(
        button("Reload settings…", () => reload(watch.history.last?.sessions ?? 0)),
        button("Log level…", logLevel),
      );
    }
    place.append(
      h("form", { class: "filters panel", role: "search", "aria-label": "Settings", on: { submit: (event) => event.preventDefault() } }, h("div", { class: "field" }, h("label", { for: "find-key" }, "Find"), find)),
      problem, how, differs.element, heading("All in effect"), tree,
    );
    return { stop: asking.stop, changed: asking.now };
  },
};

/** A mapping as nested lists; what the search does not fit is left out. */
function branch(value, path, wanted) {
  const entries = Array.isArray(value) ? value.map((each, index) => [`${index + 1}`, each]) : Object.entries(value);
  const lines = [];
  for (const [key, each] of entries) {
    const here = path ? `${path}.${key}` : key;
    const inside = each !== null && typeof each === "object" && Object.keys(each).length > 0;
    const fits = here.toLowerCase().includes(wanted);
    if (inside) {
      const rest = branch(each, here, fits ? "" : wanted);
      if (rest) lines.push(h("li", {}, h("details", { open: path === "" ? wanted !== "" : true }, h("summary", {}, shown(key)), rest)));
    } else if (fits) {
      lines.push(h("li", {}, h("span", { class: "key" }, shown(key)), h("span", { class: "name" }, Array.isArray(each) ? "none" : plain(each))));
    }
  }
  return lines.length ? h("ul", {}, lines) : null;
}
