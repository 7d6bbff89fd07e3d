// What is looked at all the time, whichever view is open: figures, backends, processes, and who changes things.

import { api } from "./api.js";
import { Feed } from "./feed.js";
import { History } from "./figures.js";

const EVERY_SECONDS = 2;
const MAX_AUDIT = 500;

class Watch extends EventTarget {
  /** Events: "figures" and "audit". */

  history = new History();
  backends = [];
  status = null;
  audit = []; // the newest first
  problem = null; // why the last look failed
  #timer = 0;
  #asking = false;
  #feed = null;

  /** Proxies of its fleet beside this one: what they have is not known here, and a kick reaches it. */
  get otherProxies() {
    const { fleet } = this.status ?? {};
    return fleet?.up ? fleet.members.length - 1 : 0;
  }

  start() {
    this.stop();
    this.#timer = setInterval(() => document.hidden || this.look(), EVERY_SECONDS * 1000);
    this.#feed = new Feed(["audit", "backend"], (event) => this.#hear(event));
    return this.look();
  }

  stop() {
    clearInterval(this.#timer);
    this.#feed?.close();
    this.#feed = null;
  }

  forget() {
    this.stop();
    this.history = new History();
    this.backends = [];
    this.status = null;
    this.audit = [];
  }

  /** Ask anew, unless an answer is on its way; failures are the page's banner's business. */
  async look() {
    if (this.#asking) return;
    this.#asking = true;
    try {
      const [figures, { backends }, status] = await Promise.all([api.get("figures"), api.get("backends"), api.get("status")]);
      this.history.add(figures);
      this.backends = backends;
      this.status = status;
      this.problem = null;
    } catch (problem) {
      this.problem = problem;
    } finally {
      this.#asking = false;
    }
    this.dispatchEvent(new Event("figures"));
  }

  #hear(event) {
    if (event.kind === "audit") {
      this.audit.unshift(event);
      this.audit.length = Math.min(this.audit.length, MAX_AUDIT);
      this.dispatchEvent(new Event("audit"));
    }
    if (event.kind !== "lost") this.look();
  }
}

export const watch = new Watch();

/** Ask again and again while a view is open. show(answer), failed(problem); gives {now, stop}. */
export function poll(seconds, ask, show, failed) {
  let stopped = false;
  let asked = 0;
  let answered = 0;
  async function now() {
    const mine = (asked += 1);
    try {
      const answer = await ask();
      if (!stopped && mine === asked) show(answer);
    } catch (problem) {
      if (!stopped && mine === asked) failed(problem);
    } finally {
      answered = Math.max(answered, mine);
    }
  }
  // A slow proxy is not asked again while it still looks for the last answer.
  const timer = setInterval(() => document.hidden || answered < asked || now(), seconds * 1000);
  now();
  return {
    now,
    stop() {
      stopped = true;
      clearInterval(timer);
    },
  };
}
