// The one stream of state that a tab has: closed while nobody sees the page, opened again by itself.

const FIRST_WAIT_MS = 500;
const LONGEST_WAIT_MS = 20_000;
const SILENT_MS = 25_000; // the server says something every ten seconds

/** Watches; `hear(name, fields)` gets what comes, `tell(state, words)` how the line is: live, waiting, closed. */
export class News {
  #line;
  #hear;
  #tell;
  #open = null; // what aborts the stream
  #timer = null;
  #tries = 0;

  constructor(line, hear, tell) {
    this.#line = line;
    this.#hear = hear;
    this.#tell = tell;
    document.addEventListener("visibilitychange", () => (document.hidden ? this.#close() : this.#again()));
    addEventListener("online", () => this.#again());
    line.onKey = () => this.#again();
    if (document.hidden) tell("closed", "paused");
    else this.#again();
  }

  #again() {
    if (this.#open || document.hidden) return;
    clearTimeout(this.#timer);
    this.#watch();
  }

  #close() {
    clearTimeout(this.#timer);
    this.#open?.abort();
    this.#open = null;
    this.#tell("closed", "paused");
  }

  async #watch() {
    const open = (this.#open = new AbortController());
    let watchdog = null;
    const alive = () => {
      clearTimeout(watchdog);
      watchdog = setTimeout(() => open.abort(), SILENT_MS);
    };
    let why = new Error("the stream has ended");
    try {
      for await (const said of this.#line.events("/swarm/events", { signal: open.signal })) {
        alive();
        if (said === null) this.#tell("live", "live");
        else {
          this.#tries = 0;
          if (said.name === "error") throw new Error(JSON.parse(said.data).error.message);
          this.#hear(said.name, JSON.parse(said.data));
        }
      }
    } catch (error) {
      why = error;
    } finally {
      clearTimeout(watchdog);
    }
    if (this.#open !== open) return; // closed on purpose
    this.#open = null;
    if (why.status === 401) this.#tell("waiting", "needs a key: ask something to give it"); // they closed the dialog
    else this.#later(why.message);
  }

  #later(why) {
    const most = Math.min(LONGEST_WAIT_MS, FIRST_WAIT_MS * 2 ** this.#tries++);
    const wait = most * (0.5 + Math.random() / 2);
    this.#tell("waiting", `not connected: ${why}`);
    this.#timer = setTimeout(() => this.#again(), wait);
  }
}
