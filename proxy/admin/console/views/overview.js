// Overview: how it goes just now, each backend, each process.

import { down, drain, kick, reload, undrain, weight } from "../actions.js";
import { api } from "../api.js";
import { Chart } from "../chart.js";
import { menuButton } from "../dialog.js";
import { button, fill, h, heading, note } from "../dom.js";
import { total } from "../figures.js";
import { clock, count, duration, latency, number, octets, plural, shown } from "../format.js";
import { Table } from "../table.js";
import { backendState, pill, sessionsLink, words } from "../words.js";
import { watch } from "../watch.js";

const MOST_OUTCOMES = 4;

export const overview = {
  name: "overview",
  title: "Overview",
  letter: "o",

  mount(place, { beside }) {
    const problem = h("div");
    const summary = h("p", { class: "summary" });
    const charts = makeCharts();
    const backends = backendTable();
    const processes = processTable();
    if (api.operator) beside.append(button("Reload settings…", () => reload(watch.history.last?.sessions ?? 0)));
    place.append(
      problem,
      summary,
      h("div", { class: "charts" }, Object.values(charts).map(({ element }) => element)),
      heading("Backends"),
      backends.element,
      heading("Processes"),
      processes.element,
    );

    function show() {
      fill(problem, watch.problem?.status ? note("bad", `Figures are not to be had: ${shown(watch.problem.message)}`) : null);
      const { history, status } = watch;
      if (!status || !history.last) return;
      tellSummary(summary, status);
      showCharts(charts, history);
      backends.update(watch.backends);
      processes.update(joined(status.processes, history));
    }
    watch.addEventListener("figures", show);
    show();
    return { stop: () => watch.removeEventListener("figures", show) };
  },
};

function tellSummary(element, status) {
  const working = watch.backends.filter(({ up, state }) => up && state !== "down").length;
  const { at, result } = status.last_reload ?? {};
  const { fleet } = status;
  fill(
    element,
    `imap-porter ${shown(status.version)}, generation ${status.generation}. ${working} of ${plural(watch.backends.length, "backend")} in use.`,
    fleet ? ` ${fleet.up ? `One of ${plural(fleet.members.length, "proxy", "proxies")} of its fleet.` : `Alone, outside its fleet: ${shown(fleet.error)}.`}` : null,
    at ? ` Last reload: ${words(result)}, settings of ${clock(at)}.` : null,
  );
}

// --- charts: the last five minutes ---

function makeCharts() {
  return {
    logins: new Chart({ title: "Logins per second", format: number, stacked: true }),
    latency: new Chart({ title: "Login latency", format: latency }),
    sessions: new Chart({ title: "Sessions", format: count }),
    commands: new Chart({ title: "Commands per second", format: number }),
    octets: new Chart({ title: "Octets per second", format: octets }),
    commandLatency: new Chart({ title: "Command latency", format: latency }),
  };
}

function showCharts(charts, history) {
  const { last } = history;
  const lastOf = (points) => points.at(-1)?.[1] ?? null;
  const now = last.time;

  const logins = loginSeries(history);
  charts.logins.update(now, number(logins.reduce((sum, { points }) => sum + (lastOf(points) ?? 0), 0)), logins);

  for (const [chart, key] of [[charts.latency, "login_seconds"], [charts.commandLatency, "command_seconds"]]) {
    const pick = (sample) => sample[key];
    const [median, high] = [history.quantiles(pick, 0.5), history.quantiles(pick, 0.95)];
    chart.update(now, latency(lastOf(high)), [
      { label: "p95", tone: "accent", points: high },
      { label: "p50", tone: "calm", points: median },
    ]);
  }

  charts.sessions.update(now, count(last.sessions), [
    { label: "open", tone: "accent", points: history.values(({ sessions }) => sessions) },
    { label: "in IDLE", tone: "calm", points: history.values(({ idle }) => idle) },
  ]);

  const commands = history.rates((sample) => total(sample.commands));
  charts.commands.update(now, number(lastOf(commands)), [{ label: "all", tone: "accent", points: commands }]);

  const [toClients, toBackends] = [history.rates((sample) => sample.octets.down), history.rates((sample) => sample.octets.up)];
  charts.octets.update(now, octets(lastOf(toClients)), [
    { label: "to clients", tone: "accent", points: toClients },
    { label: "to backends", tone: "calm", points: toBackends },
  ]);
}

/** Logins by outcome: ok first, then the most frequent, and the rest together. */
function loginSeries(history) {
  const { last } = history;
  const others = Object.entries(last.logins)
    .filter(([outcome, logins]) => outcome !== "ok" && logins > 0)
    .sort(([, a], [, b]) => b - a)
    .map(([outcome]) => outcome);
  const own = ["ok", ...others.slice(0, MOST_OUTCOMES - 1)];
  const series = own.map((outcome) => ({
    label: words(outcome),
    tone: outcome === "ok" ? "accent" : outcome === "unavailable" ? "bad" : outcome === "authentication_failed" ? "warn" : "calm",
    points: history.rates(({ logins }) => logins[outcome] ?? 0),
  }));
  const rest = others.slice(MOST_OUTCOMES - 1);
  if (rest.length) {
    const sum = ({ logins }) => rest.reduce((all, outcome) => all + (logins[outcome] ?? 0), 0);
    series.push({ label: "others", tone: "grey", points: history.rates(sum) });
  }
  return series;
}

// --- backends ---

function backendTable() {
  const columns = [
    { label: "Backend", cell: ({ name, url, pool, discovered }) => backendName(name, url, pool, discovered), key: ({ name, url, pool }) => `${name} ${url} ${pool}` },
    { label: "State", cell: backendState, key: ({ state, up, failed_over: over }) => `${state}${up}${over}` },
    { label: "Health", cell: ({ up, health_seconds: seconds, reason }) => health(up, seconds, reason), key: ({ up, health_seconds: seconds, reason }) => up + duration(seconds) + reason },
    { label: "Weight", tone: "number", cell: ({ weight: value }) => count(value) },
    { label: "Sessions", tone: "number wide", cell: sessionBar, key: ({ sessions, name }) => `${sessions}/${share(name)}` },
    { label: "Users", tone: "number", cell: ({ users }) => count(users) },
    { label: "Waiting", tone: "number", cell: ({ logins_waiting: waiting }) => count(waiting) },
  ];
  if (api.operator) columns.push({ label: "", tone: "acts", fixed: backendActs, cell: () => "" });
  return new Table({
    caption: "Backends",
    columns,
    key: ({ name }) => name,
    empty: ["No backend", "Name one in backends.servers, or let DNS name them by backends.discovery."],
  });
}

const backendName = (name, url, pool, discovered) => [
  h("span", { class: "name strong" }, shown(name)),
  pool && pill(shown(pool), "plain"),
  h("span", { class: "under" }, shown(url), discovered ? " by DNS" : ""),
];

const health = (up, seconds, reason) => [
  h("span", {}, `${up ? "up" : "down"} for ${duration(seconds)}`),
  reason && h("span", { class: "under" }, shown(reason)),
];

function share(name) {
  const most = Math.max(1, ...watch.backends.map(({ sessions }) => sessions));
  return (watch.backends.find((each) => each.name === name)?.sessions ?? 0) / most;
}

function sessionBar({ name, sessions }) {
  return [
    sessionsLink(count(sessions), { backend: name }),
    h("meter", { min: 0, max: 1, value: share(name).toFixed(3), "aria-hidden": "true" }),
  ];
}

function backendActs(record) {
  const { name } = record();
  const drainOrBack = button("Drain…", () => (record().state === "up" ? drain(record()) : undrain(record())), {});
  const tell = () => {
    const back = record()?.state !== "up";
    drainOrBack.textContent = back ? "Undrain…" : "Drain…";
    drainOrBack.setAttribute("aria-label", `${back ? "Undrain" : "Drain"} ${shown(name)}…`);
  };
  tell();
  watch.addEventListener("figures", function again() {
    if (drainOrBack.isConnected) tell();
    else watch.removeEventListener("figures", again);
  });
  return [
    drainOrBack,
    menuButton(`More for ${shown(name)}`, () => [
      ["Weight…", () => weight(record())],
      ["Take down…", () => down(record()), record().state === "down"],
      ["Kick all sessions…", () => kick({ backend: name }, record().sessions, `all at ${shown(name)}`), !record().sessions && !watch.otherProxies],
    ]),
  ];
}

// --- processes ---

/** Processes, with what figures tell of workers. */
function joined(processes, history) {
  const { samples, last } = history;
  const before = samples.at(-4) ?? samples[0];
  return processes.map((process) => {
    const now = last.workers.find((each) => each.process === process.process);
    const then = before.workers.find((each) => each.process === process.process);
    const seconds = last.time - before.time;
    const used = now && then && seconds > 0 ? Math.max(0, now.cpu_seconds - then.cpu_seconds) / seconds : null;
    return { ...process, ...now, used };
  });
}

function processTable() {
  const percent = ({ used }) => (used === null ? "–" : `${Math.round(used * 100)} %`);
  return new Table({
    caption: "Processes",
    columns: [
      { label: "Process", cell: ({ process }) => h("span", { class: "name strong" }, shown(process)), key: ({ process }) => process },
      { label: "Role", cell: ({ role }) => shown(role) },
      { label: "State", cell: ({ state }) => pill(words(state), state === "accepting" || state === "ready" ? "good" : "warn"), key: ({ state }) => state },
      { label: "Generation", tone: "number", cell: ({ generation }) => count(generation) },
      { label: "Pid", tone: "number", cell: ({ pid }) => String(pid) },
      { label: "Sessions", tone: "number", cell: ({ sessions }) => count(sessions) },
      { label: "Loop delay", tone: "number", cell: ({ loop_delay_seconds: delay }) => latency(delay) },
      { label: "CPU", tone: "number", cell: percent },
      { label: "Memory", tone: "number", cell: ({ resident_bytes: bytes }) => octets(bytes) },
    ],
    key: ({ process, pid }) => `${process} ${pid}`,
    empty: ["No process is known", "The master has not told of any yet."],
  });
}
