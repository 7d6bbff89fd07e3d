// Live events: one WebSocket that comes back by itself, later each time it fails.

import { api } from "./api.js";

const FIRST_SECONDS = 1;
const LAST_SECONDS = 30;

export class Feed {
  #socket = null;
  #timer = 0;
  #wait = FIRST_SECONDS;
  #closed = false;

  /**
   * kinds: of events.
   * onEvent: called with each; what was lost comes as {kind: "lost", events}.
   * onState: called with "live", or "waiting" and the seconds until the next try.
   */
  constructor(kinds, onEvent, onState = () => {}) {
    this.kinds = kinds;
    this.#onEvent = onEvent;
    this.#onState = onState;
    this.#open();
  }

  #onEvent;
  #onState;

  close() {
    this.#closed = true;
    clearTimeout(this.#timer);
    this.#socket?.close();
  }

  #open() {
    const socket = api.openEvents(this.kinds);
    this.#socket = socket;
    socket.addEventListener("open", () => {
      this.#wait = FIRST_SECONDS;
      if (!this.#closed) this.#onState("live");
    });
    socket.addEventListener("message", (message) => {
      if (this.#closed) return;
      try {
        this.#onEvent(JSON.parse(message.data));
      } catch (problem) {
        console.warn("an event that is none", problem);
      }
    });
    socket.addEventListener("close", () => {
      if (this.#closed) return;
      // Not all at the same moment, when a proxy comes back that many pages look at.
      const seconds = this.#wait * (0.75 + Math.random() / 2);
      this.#wait = Math.min(LAST_SECONDS, this.#wait * 2);
      this.#onState("waiting", seconds);
      this.#timer = setTimeout(() => this.#open(), seconds * 1000);
    });
  }
}
