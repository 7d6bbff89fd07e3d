// The console: sign-in, the way between the views, and what is said when the proxy does not answer.

import { onChanged } from "./actions.js";
import { api } from "./api.js";
import { byId, fill, h, say } from "./dom.js";
import { clock, duration } from "./format.js";
import { listenForKeys } from "./keys.js";
import { audit } from "./views/audit.js";
import { events } from "./views/events.js";
import { explain } from "./views/explain.js";
import { limits } from "./views/limits.js";
import { overview } from "./views/overview.js";
import { sessions } from "./views/sessions.js";
import { settings } from "./views/settings.js";
import { watch } from "./watch.js";

const VIEWS = [overview, sessions, explain, events, limits, settings, audit];

let open = null; // what the view that is open wants called: {stop, changed}
let reachedAt = 0;
let lostAt = 0;

// --- the way between the views ---

/** The view that the address names, the name behind it, and its query. */
function where() {
  const [path, query = ""] = location.hash.replace(/^#\/?/, "").split("?");
  const [name, ...rest] = path.split("/");
  let subject = "";
  try {
    subject = decodeURIComponent(rest.join("/"));
  } catch {
    // Somebody typed a stray "%": there is no such name.
  }
  return { view: VIEWS.find((each) => each.name === name) ?? overview, subject, query: new URLSearchParams(query) };
}

function show() {
  if (byId("app").hidden) return;
  const { view, subject, query } = where();
  open?.stop();
  document.title = `${subject || view.title} · imap-porter`;
  for (const link of byId("nav").querySelectorAll("a")) {
    if (link.dataset.view === view.name) {
      link.setAttribute("aria-current", "page");
      link.scrollIntoView({ block: "nearest", inline: "nearest" });
    } else link.removeAttribute("aria-current");
  }
  const place = h("section", { class: `view ${view.name}`, "aria-labelledby": "title" });
  const beside = h("div", { class: "beside" });
  place.append(h("div", { class: "heading" }, h("h1", { id: "title", tabindex: "-1" }, view.title), beside));
  fill(byId("view"), place);
  open = view.mount(place, { subject, query, beside });
}

function arrive() {
  document.querySelector("dialog[open]")?.close();
  show();
  // Screen readers hear where they are; the keyboard goes on from there.
  byId("title")?.focus({ preventScroll: true });
  scrollTo(0, 0);
}

// --- who is there ---

function enter() {
  byId("sign-in").hidden = true;
  byId("app").hidden = false;
  byId("skip").hidden = false;
  say(byId("role"), api.role);
  byId("role").title = api.operator ? "This token may change things." : "This token may look on only.";
  document.body.dataset.role = api.role;
  watch.start();
  show();
}

function leave(reason = "") {
  api.signOut();
  watch.forget();
  open?.stop();
  open = null;
  for (const dialog of document.querySelectorAll("dialog")) dialog.close();
  fill(byId("view"));
  byId("app").hidden = true;
  byId("skip").hidden = true;
  byId("sign-in").hidden = false;
  document.title = "Sign in · imap-porter";
  tellSignIn(reason);
  byId("token").focus();
}

function tellSignIn(reason) {
  const problem = byId("sign-in-problem");
  problem.hidden = !reason;
  say(problem, reason);
}

function whyNot(problem) {
  if (problem.status === 401) return `The proxy does not know this token. Compare it with admin.tokens; a changed file needs a reload.`;
  if (problem.status === 403) return `The proxy refused: ${problem.message}`;
  return problem.message;
}

async function signIn(event) {
  event.preventDefault();
  const field = byId("token");
  const submit = event.target.querySelector("button");
  const token = field.value.trim();
  if (!token) {
    tellSignIn("Type or paste a token first.");
    field.focus();
    return;
  }
  submit.disabled = true;
  try {
    await api.signIn(token);
    field.value = "";
    tellSignIn("");
    enter();
    byId("title").focus({ preventScroll: true });
  } catch (problem) {
    tellSignIn(whyNot(problem));
    field.select();
  } finally {
    submit.disabled = false;
  }
}

// --- whether the proxy answers ---

function tellReach() {
  const lost = lostAt > reachedAt;
  const reach = byId("reach");
  reach.className = `reach ${lost ? "bad" : "good"}`;
  say(reach, lost ? "unreachable" : watch.status?.draining ? "draining" : "live");
  document.body.classList.toggle("stale", lost);
  const stale = byId("stale");
  if (lost) {
    const age = reachedAt ? `What you see is from ${clock(reachedAt / 1000)}, ${duration((Date.now() - reachedAt) / 1000)} ago.` : "";
    say(stale, `The proxy does not answer. ${age} It is asked again every few seconds; if that lasts, look at its process and at the network between.`);
  }
  stale.hidden = !lost;
}

api.addEventListener("reached", () => {
  reachedAt = Date.now();
  tellReach();
});
api.addEventListener("unreachable", () => {
  lostAt = Math.max(Date.now(), reachedAt + 1);
  tellReach();
});
api.addEventListener("refused", () => {
  if (!byId("app").hidden) leave("Your token is not valid any more: it was removed or changed in admin.tokens. Sign in with another.");
});
setInterval(() => lostAt > reachedAt && tellReach(), 1000);

// --- the start ---

fill(
  byId("nav"),
  VIEWS.map(({ name, title, letter }) => h("a", { href: `#/${name}`, "data-view": name, title: `g ${letter}` }, title)),
);
byId("sign-in").querySelector("form").addEventListener("submit", signIn);
byId("sign-out").addEventListener("click", () => leave());
byId("skip").addEventListener("click", (event) => {
  event.preventDefault(); // the address is the view's
  byId("main").focus();
});
byId("find").addEventListener("submit", (event) => {
  event.preventDefault();
  const name = byId("find-name").value.trim();
  if (name) location.hash = `#/explain/${encodeURIComponent(name)}`;
});
addEventListener("hashchange", arrive);
onChanged(() => {
  watch.look();
  open?.changed?.();
});
listenForKeys(VIEWS);

async function begin() {
  if (!api.signedIn) return;
  try {
    await api.resume();
    enter();
  } catch (problem) {
    if (problem.status === 401) {
      leave("Your token is not valid any more. Sign in with another.");
      return;
    }
    // Who asks is not known, nor what he may do: he looks on, and it is asked until it is.
    if (byId("app").hidden) enter();
    setTimeout(begin, 3000);
  }
}

if (api.signedIn) begin();
else leave();
