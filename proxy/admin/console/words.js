// How things are shown in every view: people, backends, states, with the way to what is known of them.

import { h } from "./dom.js";
import { shown } from "./format.js";

/** A user, with the way to what is known of him. */
export const userLink = (name) => h("a", { href: `#/explain/${encodeURIComponent(name)}`, class: "name" }, shown(name));

/** Sessions of something, as a link: query is what sessions are searched by. */
export const sessionsLink = (text, query) => h("a", { href: `#/sessions?${new URLSearchParams(query)}` }, text);

export const pill = (text, tone) => h("span", { class: `pill ${tone}` }, text);

/** A backend's state: the administrator's word, unless checks say worse. */
export function backendState({ state, up, failed_over: failedOver }) {
  if (state === "down") return pill("down", "plain");
  if (!up) return pill(failedOver ? "failed over" : "not working", "bad");
  if (state === "drain") return pill("draining", "warn");
  if (failedOver) return pill("coming back", "warn");
  return pill("up", "good");
}

const GOOD = new Set(["ok", "logged_out", "client_closed"]);
const BAD = new Set(["unavailable", "server_bug", "backend_closed", "protocol_violation"]);

/** Which tone an outcome has. */
export const outcomeTone = (outcome) => (GOOD.has(outcome) ? "good" : BAD.has(outcome) ? "bad" : "warn");

/** An outcome's or a state's word, for people. */
export const words = (text) => shown(String(text).replaceAll("_", " "));
