// What operators may do. Each opens a dialog that says what will happen to how many, and demands a reason.

import { api } from "./api.js";
import { openDialog } from "./dialog.js";
import { button, fill, h, note, say, toast } from "./dom.js";
import { choiceField, numberField, reasonField, timeField } from "./fields.js";
import { count, duration, plural, shown } from "./format.js";
import { watch } from "./watch.js";

const DAY = 86400;
const MAX_WEIGHT = 1000;

/** Called after something was changed. */
let afterwards = () => {};
export const onChanged = (listener) => (afterwards = listener);

/**
 * Ask for a reason and do it.
 * effect(values): what will happen, in sentences; follows the fields while they are filled in.
 * told(done): what has happened, in one.
 */
function change({ title, verb, body = {}, fields = [], effect, label, danger = false, told }) {
  const all = [...fields, reasonField()];
  const dialog = openDialog(title);
  const expected = h("p", { class: "effect", id: "effect", "aria-live": "polite" });
  const problem = h("p", { class: "note bad", role: "alert", hidden: true });
  const submit = h("button", { type: "submit", class: danger ? "danger" : "primary" }, label);
  const values = () => Object.fromEntries(all.map((field) => [field.key, field.value()]));
  const foresee = () => say(expected, effect(values()));
  const form = h(
    "form",
    { novalidate: true, "aria-describedby": "effect" },
    expected,
    all.map(({ element }) => element),
    problem,
    h("footer", {}, button("Cancel", dialog.close), submit),
  );

  form.addEventListener("input", foresee);
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const wrong = all.find((field) => field.mistake());
    problem.hidden = !wrong;
    if (wrong) {
      say(problem, wrong.mistake());
      wrong.input.setAttribute("aria-invalid", "true");
      wrong.input.focus();
      return;
    }
    submit.disabled = true;
    try {
      const answer = await api.post(verb, { ...body, ...values() });
      succeed(dialog, told(answer.done), answer.warning);
      afterwards(verb, answer.done);
    } catch (failure) {
      say(problem, wayOut(failure));
      problem.hidden = false;
    } finally {
      submit.disabled = false;
    }
  });
  fill(dialog.body, form);
  foresee();
  all[0].input.focus();
}

/** What was done; a dialog that has to warn stays until it is read. */
function succeed(dialog, text, warning) {
  toast(text);
  if (!warning) {
    dialog.close();
    return;
  }
  const close = button("Close", dialog.close, { class: "primary" });
  fill(dialog.body, note("good", text), h("p", { class: "note warn", role: "alert" }, shown(warning)), h("footer", {}, close));
  close.focus();
}

function wayOut(problem) {
  if (problem.status === 0) return `${problem.message} Nothing is known of what was done: look before you try again.`;
  if (problem.status === 401) return "The token is not valid any more. Sign in again; nothing was changed.";
  if (problem.status === 403) return "This token may look on only: changes need one with the role operator.";
  return `Nothing was changed: ${shown(problem.message)}`;
}

// --- backends ---

const there = ({ sessions, users }) =>
  sessions ? `${plural(users, "user")} with ${plural(sessions, "session")} are there now.` : "Nobody is there now.";
const STATES = { up: "in use", drain: "draining", down: "down" };
const nowIt = ({ after }) => `${shown(after.name)} is ${STATES[after.state]} now, with weight ${after.weight}.`;

export function drain(view) {
  change({
    title: `Drain ${shown(view.name)}`,
    verb: "drain",
    body: { backend: view.name },
    fields: [
      timeField("over_seconds", "Those who are there", {
        without: "stay until they leave by themselves", within: "are moved within", amount: 10, most: DAY,
      }),
    ],
    effect: ({ over_seconds: seconds }) => {
      const who = `${shown(view.name)} gets no new users. ${there(view)}`;
      if (!view.sessions) return who;
      if (seconds === null) return `${who} They stay until their sessions end; each goes elsewhere at his next login after.`;
      return `${who} They are moved one by one within ${duration(seconds)}: their sessions end between two commands, and mail programs come back by themselves.`;
    },
    label: "Drain",
    told: nowIt,
  });
}

export function undrain(view) {
  change({
    title: `Undrain ${shown(view.name)}`,
    verb: "undrain",
    body: { backend: view.name },
    effect: () => `${shown(view.name)} takes users again. Those whose home it is come back at their next login; sessions elsewhere are not ended.`,
    label: "Undrain",
    told: nowIt,
  });
}

export function down(view) {
  change({
    title: `Take ${shown(view.name)} down`,
    verb: "down",
    body: { backend: view.name },
    effect: () => `${shown(view.name)} is not used any more, whatever its checks say. ${there(view)} New logins go to each user's next choice where there is one; who has his mail here alone is refused.`,
    label: "Take down",
    danger: true,
    told: nowIt,
  });
}

export function weight(view) {
  change({
    title: `Weight of ${shown(view.name)}`,
    verb: "weight",
    body: { backend: view.name },
    fields: [
      numberField("weight", "Weight", { value: view.weight, min: 0, max: MAX_WEIGHT, hint: "Its share, relative to the others. 0: no new users." }),
    ],
    effect: ({ weight: wanted }) => {
      if (wanted === view.weight) return `The weight is ${view.weight}. ${there(view)}`;
      return `From ${view.weight} to ${wanted}: ${wanted > view.weight ? "some users of others come here" : "some of its users go elsewhere"}, each at his next login without an open session. No session ends.`;
    },
    label: "Set weight",
    told: nowIt,
  });
}

// --- sessions and users ---

/** Sessions at so many other proxies of the fleet, for people. */
const elsewhere = (proxies) => (proxies ? `those at the other ${proxies === 1 ? "proxy" : `${count(proxies)} proxies`}` : "");

/** Whose: {session} or {user} or {address} or {backend}; sessions: how many that are; what: for people. */
export function kick(whose, sessions, what) {
  change({
    title: `Kick ${what}`,
    verb: "kick",
    body: whose,
    effect: () => {
      const others = whose.session ? "" : elsewhere(watch.otherProxies);
      const how = "at a safe point within 5 seconds and then at once. Mail programs log in again by themselves: to keep somebody out, hold him.";
      if (sessions) return `${plural(sessions, "session")}${others && ` and ${others}`} will end, ${how}`;
      if (!watch.status?.fleet) return "No session is open just now; nothing will happen.";
      const here = "No session is open at this proxy just now";
      return others ? `${here}; ${others} will end, ${how}` : `${here}.`;
    },
    label: "Kick",
    danger: true,
    told: (done) => {
      const others = done.proxies ? `; ${plural(done.proxies, "other proxy", "other proxies")} asked, too` : "";
      return `${plural(done.sessions, "session")} of ${what} end${others}.`;
    },
  });
}

export function move(user, sessions, backends) {
  change({
    title: `Move ${shown(user)}`,
    verb: "move",
    body: { user },
    fields: [
      choiceField("backend", "To", backends.map(({ name, state, up }) => [name, `${shown(name)}${up && state === "up" ? "" : ` (${up ? state : "not working"})`}`])),
      timeField("for_seconds", "How long", { without: "until released", within: "for", amount: 1, unit: "hours", most: 30 * DAY }),
    ],
    effect: ({ backend, for_seconds: seconds }) =>
      `All logins of ${shown(user)} go to ${shown(backend)} ${seconds === null ? "until you release him" : `for ${duration(seconds)}`}. ${sessions ? `${plural(sessions, "session")} elsewhere will end between two commands and come back there.` : "He has no session now."} Mail is not copied.`,
    label: "Move",
    told: (done) => `${shown(user)} lives at ${shown(done.backend)} now; ${plural(done.sessions, "session")} move.`,
  });
}

export function hold(user, sessions) {
  change({
    title: `Hold ${shown(user)}`,
    verb: "hold",
    body: { user },
    fields: [timeField("for_seconds", "How long", { without: "until released", within: "for", amount: 30, most: 30 * DAY })],
    effect: ({ for_seconds: seconds }) =>
      `${shown(user)} cannot log in ${seconds === null ? "until you release him" : `for ${duration(seconds)}`}: mail programs are told “temporarily unavailable”. ${sessions ? `${plural(sessions, "session")} will end between two commands.` : "He has no session now."}`,
    label: "Hold",
    danger: true,
    told: (done) => `${shown(user)} is held; ${plural(done.sessions, "session")} end.`,
  });
}

export function release(user) {
  change({
    title: `Release ${shown(user)}`,
    verb: "release",
    body: { user },
    effect: () => `${shown(user)} may log in, and goes where routing says: a move and a hold end.`,
    label: "Release",
    told: () => `${shown(user)} is released.`,
  });
}

/** started: called with the trace. */
export function trace(user, started) {
  change({
    title: `Trace ${shown(user)}`,
    verb: "trace",
    body: { user },
    fields: [numberField("seconds", "Seconds", { value: 60, min: 1, max: 3600 })],
    effect: ({ seconds }) => `The protocol lines of ${shown(user)} are shown here for ${duration(seconds)}. Secrets and message bodies are left out; subjects, addresses and folder names may show.`,
    label: "Trace",
    told: (done) => {
      started(done);
      return `${shown(user)} is traced.`;
    },
  });
}

export function untrace(id) {
  change({
    title: "End the trace",
    verb: "untrace",
    body: { trace: id },
    effect: () => "No more lines are shown.",
    label: "End",
    told: () => "The trace has ended.",
  });
}

// --- the proxy ---

export function reload(sessions) {
  change({
    title: "Reload the settings",
    verb: "reload",
    effect: () => `The file is checked as a whole first: with a mistake in it nothing changes. New workers then take all new logins; the ${plural(sessions, "session")} that are open keep what they began with.`,
    label: "Reload",
    told: (done) => `Reloaded: ${shown(done.reloaded)}`,
  });
}

export function logLevel() {
  change({
    title: "Log level",
    verb: "log-level",
    fields: [choiceField("level", "Level", ["debug", "info", "warning", "error"].map((level) => [level, level]), "info")],
    effect: ({ level }) => `All processes write ${level} and what is more important, until the next reload. Nobody's session is touched.`,
    label: "Set level",
    told: (done) => `The log level is ${done.level} now; it was ${done.before}.`,
  });
}
