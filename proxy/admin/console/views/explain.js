// Explain: all that is known of one user: who vouched for him, where he goes and why, what is left, what failed.

import { hold, kick, move, release, trace, untrace } from "../actions.js";
import { api } from "../api.js";
import { Feed } from "../feed.js";
import { button, facts, fill, h, heading, nothing, note } from "../dom.js";
import { clock, count, duration, number, plain, plural, shown } from "../format.js";
import { Table } from "../table.js";
import { poll, watch } from "../watch.js";
import { outcomeTone, pill, words } from "../words.js";
import { sessionTable } from "./sessions.js";

const EVERY_SECONDS = 5;
const MAX_LINES = 500;

export const explain = {
  name: "explain",
  title: "Explain",
  letter: "x",

  mount(place, { subject, beside }) {
    place.append(askForm(subject));
    if (!subject) {
      place.append(h("div", { class: "panel" }, nothing("Whom?", "Type a name in any spelling that he could log in with. You see who vouches for him, where his next login goes, and why.")));
      return { stop() {} };
    }

    let answer = null;
    let feed = null;
    const problem = h("div");
    const parts = {
      verdict: h("div", { role: "status" }),
      traced: h("div"),
      order: orderTable(),
      identity: h("div", { class: "panel" }),
      limits: limitTable(),
      sessions: sessionTable({ withUser: false }),
      failures: failureTable(),
    };
    const known = h(
      "div", { hidden: true },
      parts.verdict,
      parts.traced,
      h(
        "div", { class: "two" },
        h("div", {}, heading("Order of backends"), parts.order.element, heading("Limits left"), parts.limits.element),
        h("div", {}, heading("Identity"), parts.identity),
      ),
      heading("Sessions"), parts.sessions.element,
      heading("Last failures"), parts.failures.element,
    );
    place.append(problem, known);

    const user = () => answer?.route?.name ?? answer?.sessions[0]?.user ?? subject;
    const asking = poll(EVERY_SECONDS, () => api.get(`explain/${encodeURIComponent(subject)}`), show, failed);

    function show(explanation) {
      answer = explanation;
      fill(problem);
      known.hidden = false;
      showVerdict(parts.verdict, explanation);
      showIdentity(parts.identity, explanation);
      parts.order.update(explanation.route?.order ?? []);
      parts.sessions.update(explanation.sessions);
      parts.limits.update(explanation.limits);
      parts.failures.update(explanation.failures);
    }

    function failed({ status, message }) {
      if (status) fill(problem, note("bad", `Nothing is known of ${shown(subject)}: ${shown(message)}`));
    }

    if (api.operator) {
      const open = () => answer?.sessions.length ?? 0;
      beside.append(
        button("Move…", () => move(user(), open(), watch.backends)),
        button("Hold…", () => hold(user(), open())),
        button("Release…", () => release(user())),
        button("Kick…", () => kick({ user: user() }, open(), shown(user()))),
        button("Trace…", () => trace(user(), (started) => {
          feed?.close();
          feed = showTrace(parts.traced, started);
        })),
      );
    }
    return {
      stop() {
        asking.stop();
        feed?.close();
      },
      changed: asking.now,
    };
  },
};

function askForm(subject) {
  const input = h("input", {
    id: "explain-name", type: "search", value: subject, placeholder: "alice@example.org", autocomplete: "off",
    spellcheck: "false", autocapitalize: "none", "data-find": true,
  });
  const form = h(
    "form", { class: "filters panel", role: "search", "aria-label": "Explain a user", novalidate: true },
    h("div", { class: "field" }, h("label", { for: "explain-name" }, "Name"), input),
    h("button", { type: "submit", class: "primary" }, "Explain"),
  );
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const name = input.value.trim();
    if (name) location.hash = `#/explain/${encodeURIComponent(name)}`;
  });
  return form;
}

// --- what comes of it ---

function showVerdict(element, { route, problem, directions }) {
  const lines = [];
  if (!route) lines.push(note("warn", `His next login is refused: ${shown(problem)}`));
  else if (route.backend) {
    lines.push(h("p", { class: "verdict" }, "Next login: ", h("strong", {}, shown(route.backend)), h("span", {}, shown(route.reason))));
  } else lines.push(note("warn", `His next login is refused: ${shown(route.reason)}`));
  if (directions) lines.push(note("warn", directed(directions)));
  const where = route?.whereabouts;
  if (where) lines.push(h("p", { class: "summary" }, whereabouts(where)));
  // Screen readers hear it when it changes, not every few seconds.
  if (element.textContent !== lines.map(({ textContent }) => textContent).join("")) fill(element, lines);
}

function directed({ backend, held, until, reason, by, since }) {
  const what = [held && "Held: he cannot log in", backend && `Moved to ${shown(backend)}`].filter(Boolean).join("; ");
  const end = until === null ? "until released" : `until ${clock(until)}`;
  return `${what}, ${end}. By ${shown(by)} at ${clock(since)}: “${shown(reason)}”`;
}

function whereabouts({ backend, sessions, sticky_seconds: sticky, sticky_holds: holds, moving }) {
  const now = `${plural(sessions, "session")} at ${shown(backend)}`;
  if (moving) return `${now}; on the way elsewhere: ${shown(moving)}`;
  if (sticky !== null && sticky !== undefined && holds) return `${now}; pinned there for ${duration(Math.ceil(sticky / 60) * 60)} more.`;
  return `${now}.`;
}

function showIdentity(element, { route, source, attributes }) {
  const pairs = [
    ["Canonical name", route && h("span", { class: "name" }, shown(route.name))],
    ["Vouched for by", source && shown(source)],
    ["Pool", route && (route.pool ? `${shown(route.pool)}, from ${shown(route.pool_from)}` : "without a tag")],
    ["Override", route?.override ? `${shown(route.override)}, from ${shown(route.override_from)}` : null],
    ["Hash key", route && h("code", {}, shown(route.key))],
    ["Epoch", route && h("code", {}, shown(route.epoch))],
    ...Object.entries(attributes ?? {}).map(([key, value]) => [shown(key), plain(value)]),
  ];
  fill(element, pairs.some(([, value]) => value) ? facts(...pairs) : nothing("Unknown", "No source knows this name."));
}

function orderTable() {
  return new Table({
    caption: "Backends of the pool, best first",
    columns: [
      { label: "Backend", cell: ({ name }) => h("span", { class: "name strong" }, shown(name)), key: ({ name }) => name },
      { label: "Score", tone: "number", cell: ({ score }) => number(score) },
      { label: "Weight", tone: "number", cell: ({ weight }) => count(weight) },
      { label: "State", cell: ({ state, up }) => pill(up === false ? "not working" : words(state), up === false ? "bad" : state === "up" ? "good" : "warn"), key: ({ state, up }) => `${state}${up}` },
      { label: "Note", cell: ({ notes }) => h("span", {}, shown(notes.join(", ") || "–")), key: ({ notes }) => notes.join() },
    ],
    key: ({ name }) => name,
    empty: ["No order", "An override, or a problem, goes around the hash."],
  });
}

function limitTable() {
  return new Table({
    caption: "Limits left",
    columns: [
      { label: "Limit", cell: ({ limit }) => h("span", { class: "name" }, shown(limit)), key: ({ limit }) => limit },
      { label: "Left", tone: "number wide", cell: ({ left, most }) => [h("span", {}, number(left)), h("meter", { min: 0, max: most, value: left, low: most * 0.2, optimum: most, "aria-hidden": "true" })], key: ({ left, most }) => `${left}/${most}` },
      { label: "Of", tone: "number", cell: ({ most, per_seconds: per }) => `${number(most)}${per ? ` per ${duration(per)}` : ""}` },
    ],
    key: ({ limit }) => limit,
    empty: ["No limit applies", "None by user is set, or nothing was used yet."],
  });
}

function failureTable() {
  return new Table({
    caption: "Last failures",
    columns: [
      { label: "Time", cell: ({ time }) => clock(time) },
      { label: "Outcome", cell: ({ outcome }) => pill(words(outcome), outcomeTone(outcome)), key: ({ outcome }) => outcome },
      { label: "Client", cell: ({ client }) => h("span", { class: "name" }, shown(client)), key: ({ client }) => client },
      { label: "Mechanism", cell: ({ mechanism }) => shown(mechanism) },
      { label: "Detail", cell: ({ detail }) => shown(detail || "–") },
    ],
    key: ({ time, client, detail }) => `${time} ${client} ${detail}`,
    empty: ["No failure", "None of the last refused logins was his."],
  });
}

// --- a trace ---

function showTrace(element, { trace: id, until }) {
  const lines = h("ol", { class: "trace", role: "log", "aria-label": "Protocol lines", "aria-live": "off", tabindex: "0" });
  const state = h("span", { class: "tag" }, "waiting for lines");
  fill(
    element,
    heading("Trace", state, button("End it…", () => untrace(id)), button("Hide", () => (feed.close(), fill(element)))),
    h("div", { class: "panel" }, lines),
  );
  const add = (side, text, time) => {
    const low = lines.scrollHeight - lines.scrollTop - lines.clientHeight < 20;
    lines.append(h("li", { class: side }, h("time", {}, clock(time)), h("b", {}, { client: "C", backend: "S" }[side] ?? "·"), h("span", {}, shown(text))));
    while (lines.children.length > MAX_LINES) lines.firstChild.remove();
    if (low) lines.scrollTop = lines.scrollHeight;
  };
  const feed = new Feed(["trace"], (event) => {
    if (event.kind === "lost") add("note", `${plural(event.events, "line")} lost: this page read too slowly`, event.time);
    else if (event.trace === id) add(event.side, event.text, event.time);
  }, (now) => {
    state.textContent = now === "live" ? `until ${clock(until)}` : "connection lost; trying again";
  });
  return feed;
}
