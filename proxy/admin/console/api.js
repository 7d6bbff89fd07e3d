// The administrators' API: the token, questions, and what goes wrong on the way.

const KEY = "porter.token";
const ANSWER_SECONDS = 15;

/** Why the proxy did not do what it was asked; `status` 0: it could not be reached. */
export class Problem extends Error {
  constructor(text, status) {
    super(text);
    this.status = status;
  }
}

class Api extends EventTarget {
  /** Events: "reached", "unreachable", and "refused" once the token is no good any more. */

  role = "viewer";
  #token = sessionStorage.getItem(KEY) ?? "";

  get signedIn() {
    return this.#token !== "";
  }

  get operator() {
    return this.role === "operator";
  }

  /** Take a token, if the proxy does; raises Problem. */
  async signIn(token) {
    if (!/^[\x21-\x7e]+$/.test(token)) throw new Problem("That is no token: it has neither spaces nor accents.", 401);
    this.#token = token;
    try {
      this.role = await this.#askRole();
    } catch (problem) {
      this.#token = "";
      throw problem;
    }
    sessionStorage.setItem(KEY, token);
  }

  /** Go on with the token of this tab; raises Problem. */
  async resume() {
    this.role = await this.#askRole();
  }

  signOut() {
    this.#token = "";
    sessionStorage.removeItem(KEY);
  }

  /** Ask for something; raises Problem. */
  get(path, query = {}) {
    const given = Object.entries(query).filter(([, value]) => value !== "" && value !== null && value !== undefined);
    const text = new URLSearchParams(given).toString();
    return this.#ask(`v1/${path}${text && `?${text}`}`, {});
  }

  /** Have something changed; raises Problem. */
  post(verb, body) {
    return this.#ask(`v1/${verb}`, {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify(body),
    });
  }

  /** A WebSocket with the events of these kinds. */
  openEvents(kinds) {
    const address = new URL("v1/events", document.baseURI);
    address.protocol = address.protocol === "https:" ? "wss:" : "ws:";
    address.hash = "";
    address.search = new URLSearchParams({ kinds: kinds.join(",") }).toString();
    // A browser can send no Authorization header here; the token goes as a second subprotocol.
    const bearer = btoa(this.#token).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");
    return new WebSocket(address, ["porter.events", `bearer.${bearer}`]);
  }

  async #ask(path, options) {
    const token = this.#token;
    let response;
    let document_;
    try {
      response = await fetch(new URL(path, document.baseURI.split("#")[0]), {
        ...options,
        headers: { ...options.headers, Authorization: `Bearer ${token}` },
        credentials: "omit",
        cache: "no-store",
        redirect: "error",
        signal: AbortSignal.timeout(ANSWER_SECONDS * 1000),
      });
      document_ = await response.json().catch(() => ({}));
    } catch {
      this.dispatchEvent(new Event("unreachable"));
      throw new Problem("The proxy cannot be reached. Is it running, and the network between?", 0);
    }
    if (token !== this.#token) throw new Problem("Signed out meanwhile.", 401);
    this.dispatchEvent(new Event("reached"));
    if (response.ok) return document_;
    if (response.status === 401) this.dispatchEvent(new Event("refused"));
    throw new Problem(document_.problem || `The proxy answered with status ${response.status}.`, response.status);
  }

  async #askRole() {
    const status = await this.get("status");
    return status.caller.role;
  }
}

export const api = new Api();
