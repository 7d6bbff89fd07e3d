// Events: what happens, as it happens.

import { button, h, nothing, say } from "../dom.js";
import { Feed } from "../feed.js";
import { clock, count, duration, plain, plural, shown } from "../format.js";
import { outcomeTone, pill, userLink, words } from "../words.js";

const KINDS = [["session", "Sessions"], ["backend", "Backends"], ["limit", "Limits"], ["audit", "Changes"]];
const MAX_SHOWN = 300;
const DRAW_MS = 250; // a page that draws each event by itself could not follow a busy host
const HIDDEN = new Set(["time", "kind", "event", "user", "id", "worker"]);

export const events = {
  name: "events",
  title: "Events",
  letter: "e",

  mount(place, { beside }) {
    const chosen = new Set(KINDS.map(([kind]) => kind));
    let waiting = [];
    let paused = false;
    let seen = 0;
    let lost = 0;
    let feed = null;

    const list = h("ol", { class: "events", role: "log", "aria-live": "off", "aria-label": "Events", tabindex: "0" });
    const empty = nothing("Nothing has happened yet", "Logins, sessions that end, backends that change, limits and administrators' changes come up here by themselves.");
    const state = h("span", { class: "tag", role: "status" }, "connecting");
    const how = h("p", { class: "summary" });
    const pause = button("Pause", () => {
      paused = !paused;
      pause.setAttribute("aria-pressed", String(paused));
      pause.textContent = paused ? "Go on" : "Pause";
      draw();
    }, { "aria-pressed": "false" });
    const clear = button("Clear", () => {
      waiting = [];
      seen = lost = 0;
      list.replaceChildren();
      draw();
    });

    function listen() {
      feed?.close();
      feed = null;
      if (!chosen.size) {
        say(state, "no kind is chosen");
        return;
      }
      say(state, "connecting");
      feed = new Feed([...chosen], hear, (now, seconds) => {
        state.className = `tag ${now === "live" ? "good" : "bad"}`;
        say(state, now === "live" ? "live" : `connection lost; next try in ${duration(Math.max(1, seconds))}`);
      });
    }

    function hear(event) {
      if (event.kind === "lost") lost += event.events;
      else seen += 1;
      waiting.push(event);
      if (waiting.length > MAX_SHOWN) waiting = waiting.slice(-MAX_SHOWN);
    }

    function draw() {
      const queued = paused && waiting.length ? ` ${plural(waiting.length, "event waits", "events wait")} while paused.` : "";
      say(how, `${plural(seen, "event")} since this view was opened, ${count(lost)} lost.${queued}`);
      if (!paused && waiting.length) {
        list.prepend(...waiting.reverse().map(line));
        waiting = [];
        while (list.children.length > MAX_SHOWN) list.lastChild.remove();
      }
      empty.hidden = list.children.length > 0;
      list.hidden = !empty.hidden;
    }

    const filter = h(
      "fieldset", { class: "filters panel" },
      h("legend", { class: "unseen" }, "Kinds of events"),
      KINDS.map(([kind, label]) => {
        const box = h("input", { type: "checkbox", id: `kind-${kind}`, checked: true });
        box.addEventListener("change", () => {
          if (box.checked) chosen.add(kind);
          else chosen.delete(kind);
          listen();
        });
        return h("div", { class: "option" }, box, h("label", { for: `kind-${kind}` }, label));
      }),
      h("div", { class: "beside" }, pause, clear),
    );

    beside.append(state);
    place.append(filter, how, h("div", { class: "panel" }, empty, list));
    listen();
    draw();
    const timer = setInterval(draw, DRAW_MS);
    return {
      stop() {
        clearInterval(timer);
        feed?.close();
      },
    };
  },
};

/** One event, as a line. */
function line(event) {
  if (event.kind === "lost") {
    return h("li", { class: "lost" }, h("time", {}, clock(event.time)), pill("lost", "bad"), h("span", {}, `${plural(event.events, "event")} lost: this page read too slowly`));
  }
  return h(
    "li", { "data-kind": event.kind },
    h("time", {}, clock(event.time)),
    pill(shown(event.event), tone(event)),
    h("span", { class: "what" }, event.user && userLink(event.user), details(event)),
  );
}

function tone({ kind, event, outcome }) {
  if (event === "backend.went_down" || event === "backend.failed_over") return "bad";
  if (event === "backend.came_up" || event === "backend.returned") return "good";
  if (kind === "limit" || kind === "audit") return "warn";
  return outcome && outcomeTone(outcome) !== "good" ? "warn" : "plain";
}

/** Its values as terms; in the audit view too. */
export function details(event, hidden = HIDDEN) {
  const values = Object.entries(event).filter(([key, value]) => !hidden.has(key) && value !== null && value !== "");
  return values.map(([key, value]) => h("span", { class: "value" }, h("i", {}, words(key)), key === "outcome" ? words(value) : key === "seconds" ? duration(value) : plain(value)));
}
