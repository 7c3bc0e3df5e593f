// The line to the server: requests with the key, errors as one sentence, streams of events.

const KEY = "swarm-key";

/** What the server said against a request. `status` 0: it could not be reached. */
export class Refused extends Error {
  constructor(status, message, retryAfter = null) {
    super(message);
    this.status = status;
    this.retryAfter = retryAfter; // seconds
  }
}

/** Asks the server. `askKey(wrong)` is to give a key, or null; it is asked for once, whoever needs it. */
export class Line {
  onKey = () => {}; // there is a new one
  #askKey;
  #asking = null;

  constructor(askKey) {
    this.#askKey = askKey;
  }

  get key() {
    return sessionStorage.getItem(KEY);
  }

  /** The response, its status sound. Throws: Refused; AbortError. */
  async ask(path, { signal, body } = {}) {
    for (;;) {
      const used = this.key;
      const response = await this.#send(path, used, signal, body);
      if (response.ok) return response;
      const refused = await refusal(response);
      if (response.status !== 401) throw refused;
      if (this.key === used && !(await this.#newKey(used !== null))) throw refused;
    }
  }

  /** What a stream says, as {name, data}; null for a sign of life. Ends with the stream. */
  async *events(path, options) {
    const response = await this.ask(path, options);
    yield null;
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "";
    try {
      for (;;) {
        const { value, done } = await reader.read();
        if (done) return;
        const frames = (rest + value).split("\n\n");
        rest = frames.pop();
        for (const frame of frames) yield parseFrame(frame);
      }
    } finally {
      reader.cancel().catch(() => {});
    }
  }

  async #send(path, key, signal, body) {
    const headers = key ? { authorization: `Bearer ${key}` } : {};
    if (body !== undefined) headers["content-type"] = "application/json";
    const sent = body === undefined ? {} : { method: "POST", body: JSON.stringify(body) };
    try {
      return await fetch(path, { ...sent, headers, signal, cache: "no-store" });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Refused(0, "The server does not answer.");
    }
  }

  #newKey(wrong) {
    this.#asking ??= this.#askKey(wrong).then((key) => {
      this.#asking = null;
      if (!key) return false;
      sessionStorage.setItem(KEY, key);
      this.onKey();
      return true;
    });
    return this.#asking;
  }
}

/** A frame of a stream: {name, data}, or null for a comment. */
export function parseFrame(frame) {
  let name = "message";
  const data = [];
  for (const line of frame.split("\n")) {
    if (line.startsWith("event: ")) name = line.slice(7);
    else if (line.startsWith("data: ")) data.push(line.slice(6));
  }
  return data.length ? { name, data: data.join("\n") } : null;
}

async function refusal(response) {
  let message = `The server says ${response.status}.`;
  try {
    const fields = await response.json();
    message = fields.error?.message ?? message;
  } catch {
    // a proxy in between may say anything
  }
  return new Refused(response.status, message, Number(response.headers.get("retry-after")) || null);
}
