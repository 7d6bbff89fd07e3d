// Sessions: who is there, found by user, address, backend or listener, page by page.

import { kick } from "../actions.js";
import { api } from "../api.js";
import { openDialog } from "../dialog.js";
import { button, facts, fill, h, nothing, note, say } from "../dom.js";
import { clock, count, duration, octets, plural, shown } from "../format.js";
import { Table } from "../table.js";
import { poll, watch } from "../watch.js";
import { pill, userLink, words } from "../words.js";

const PAGE = 100;
const EVERY_SECONDS = 5;
const FIELDS = [
  ["user", "User", "alice@example.org"],
  ["address", "Address", "192.0.2.7"],
  ["backend", "Backend", "any"],
  ["listener", "Listener", "any"],
];

export const sessions = {
  name: "sessions",
  title: "Sessions",
  letter: "s",

  mount(place, { query, beside }) {
    const asked = Object.fromEntries(FIELDS.map(([key]) => [key, query.get(key) ?? ""]));
    const pages = [""]; // what each page up to this one came after
    let next = null;

    const problem = h("div");
    const how = h("p", { class: "summary", role: "status" });
    const table = sessionTable();
    const back = button("Previous page", () => (pages.pop(), turn()));
    const on = button("Next page", () => (pages.push(next), turn()));
    const asking = poll(EVERY_SECONDS, () => api.get("sessions", { ...asked, limit: PAGE, after: pages.at(-1) }), show, failed);

    function turn() {
      back.disabled = on.disabled = true;
      asking.now();
    }

    function show(answer) {
      fill(problem);
      next = answer.next;
      back.disabled = pages.length === 1;
      on.disabled = next === null;
      back.hidden = on.hidden = back.disabled && on.disabled;
      say(how, told(answer, pages.length));
      table.update(answer.sessions);
      kickAll.hidden = !answer.total && !watch.otherProxies;
      found = answer.total;
    }

    function failed({ status, message }) {
      if (status) fill(problem, note("bad", `Sessions cannot be listed: ${shown(message)}`));
    }

    let found = 0;
    const narrowed = ["user", "address", "backend"].filter((key) => asked[key]);
    const kickAll = button("Kick all of these…", () => {
      const [key] = narrowed;
      kick({ [key]: asked[key] }, found, shown(asked[key]));
    });
    // A kick knows one of the three alone: several together would mean more than what is listed.
    if (api.operator && narrowed.length === 1 && !asked.listener) beside.append(kickAll);
    kickAll.hidden = true;
    back.hidden = on.hidden = true;

    place.append(searchForm(asked), problem, how, table.element, h("div", { class: "pages" }, back, on));
    return { stop: asking.stop, changed: asking.now };
  },
};

function told({ total, sessions: listed }, page) {
  if (!total) return "No session fits.";
  const first = (page - 1) * PAGE + 1;
  if (total === listed.length) return `${plural(total, "session")}.`;
  return `${plural(total, "session")}; these are ${count(first)} to ${count(first + listed.length - 1)}.`;
}

function searchForm(asked) {
  const inputs = Object.fromEntries(
    FIELDS.map(([key, , placeholder]) => [
      key,
      h("input", {
        id: `find-${key}`, value: asked[key], placeholder, type: "search", autocomplete: "off", spellcheck: "false",
        autocapitalize: "none", list: key === "backend" ? "known-backends" : null, "data-find": key === "user",
      }),
    ]),
  );
  const form = h(
    "form",
    { class: "filters panel", role: "search", "aria-label": "Sessions", novalidate: true },
    FIELDS.map(([key, label]) => h("div", { class: "field" }, h("label", { for: `find-${key}` }, label), inputs[key])),
    h("datalist", { id: "known-backends" }, watch.backends.map(({ name }) => h("option", { value: name }))),
    h("button", { type: "submit", class: "primary" }, "Search"),
    h("a", { class: "button", href: "#/sessions" }, "Clear"),
  );
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const given = Object.entries(inputs).map(([key, input]) => [key, input.value.trim()]);
    location.hash = `#/sessions?${new URLSearchParams(given.filter(([, value]) => value))}`;
  });
  return form;
}

/** A table of sessions; in the explain view too. */
export function sessionTable({ withUser = true } = {}) {
  const columns = [
    { label: "Client", cell: ({ client }) => h("span", { class: "name" }, shown(client)), key: ({ client }) => client },
    { label: "Backend", cell: ({ backend }) => h("span", { class: "name" }, shown(backend)), key: ({ backend }) => backend },
    { label: "State", cell: ({ state }) => pill(words(state), state === "open" ? "good" : "warn"), key: ({ state }) => state },
    { label: "Listener", cell: ({ listener }) => shown(listener) },
    { label: "Worker", cell: ({ worker }) => shown(worker) },
    { label: "Open for", tone: "number", cell: ({ seconds }) => duration(seconds) },
    { label: "", tone: "acts", fixed: acts, cell: () => "" },
  ];
  if (withUser) columns.unshift({ label: "User", cell: ({ user }) => userLink(user), key: ({ user }) => user });
  return new Table({
    caption: "Sessions",
    columns,
    key: ({ id }) => id,
    empty: ["No session", "Nobody is there, or nobody whom the search fits."],
  });
}

function acts(record) {
  const { id, user } = record();
  const about = `of ${shown(user)} from ${shown(record().client)}`;
  return [
    button("Details", () => showDetails(record()), { "aria-label": `Details ${about}` }),
    api.operator && button("Kick…", () => kick({ session: id }, 1, `the session ${about}`), { "aria-label": `Kick the session ${about}…` }),
  ].filter(Boolean);
}

/** What the proxy and the session's worker know of it, while one looks. */
function showDetails(session) {
  const dialog = openDialog(`Session of ${shown(session.user)}`, { onClose: () => asking.stop() });
  const asking = poll(
    2,
    () => api.get(`sessions/${encodeURIComponent(session.id)}`),
    (details) => fill(dialog.body, describe(details)),
    ({ status, message }) => {
      if (status === 404) {
        fill(dialog.body, nothing("It has ended", "Events, or the log's line session.closed, say how."));
        asking.stop();
      } else fill(dialog.body, describe(session), note("bad", `Its worker cannot be asked: ${shown(message)}`));
    },
  );
  fill(dialog.body, describe(session));
}

function describe(session) {
  const yes = (value) => (value === null || value === undefined ? null : value ? "yes" : "no");
  const some = (value, format) => (value === null || value === undefined ? null : format(value));
  return facts(
    ["User", userLink(session.user)],
    ["Client", shown(session.client)],
    ["Backend", shown(session.backend)],
    ["Because", session.why && words(session.why)],
    ["State", session.activity ? `${words(session.state)}, ${words(session.activity)}` : words(session.state)],
    ["Since", `${clock(session.since)}, ${duration(session.seconds)}`],
    ["Listener", shown(session.listener)],
    ["Worker", shown(session.worker)],
    ["Mechanism", some(session.mechanism, shown)],
    ["Source", some(session.source, shown)],
    ["TLS", yes(session.secure)],
    ["Commands", some(session.commands, count)],
    ["To the backend", some(session.octets_up, octets)],
    ["To the client", some(session.octets_down, octets)],
    ["Id", h("code", {}, shown(session.id))],
  );
}
