// What screen readers are told: an answer by sentences as they are whole, and what befalls the swarm.

const PAUSE_MS = 1200; // one thing at a time, and no token by token

export class Speech {
  #node;
  #queue = [];
  #timer = null;
  #told = 0; // of the answer's text

  constructor(node) {
    this.#node = node;
  }

  /** Say it when what was said before is through. */
  say(text) {
    this.#queue.push(text);
    if (this.#queue.length > 20) this.#queue.splice(0, 10);
    this.#timer ??= setTimeout(() => this.#next(), 50);
  }

  begin() {
    this.#told = 0;
    this.say("Answering");
  }

  /** Of an answer that grows: the sentences that have become whole. */
  follow(text) {
    const fresh = text.slice(this.#told);
    const end = Math.max(fresh.lastIndexOf(". "), fresh.lastIndexOf("! "), fresh.lastIndexOf("? "), fresh.lastIndexOf("\n"));
    if (end < 0) return;
    this.#told += end + 1;
    this.say(fresh.slice(0, end + 1).trim());
  }

  end(text, words) {
    const rest = text.slice(this.#told).trim();
    this.say(rest ? `${rest} ${words}` : words);
  }

  #next() {
    const text = this.#queue.splice(0).join(" ");
    this.#node.textContent = text;
    this.#timer = setTimeout(() => {
      this.#timer = null;
      if (this.#queue.length) this.#next();
    }, PAUSE_MS);
  }
}
