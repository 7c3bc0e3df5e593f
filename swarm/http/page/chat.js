// The conversation: asks, stops, asks again. It is kept in this page alone.

import { ask } from "./ask.js";
import { el } from "./dom.js";
import { sends, Turn } from "./turn.js";

const NEAR_PX = 80; // of the end: whoever reads further up is left there

export class Chat {
  #line;
  #swarm;
  #settings;
  #speech;
  #at; // {turns, form, question, send, stop}
  #turns = [];
  #asking = null; // what aborts the answer under way

  constructor({ line, swarm, settings, speech, at }) {
    this.#line = line;
    this.#swarm = swarm;
    this.#settings = settings;
    this.#speech = speech;
    this.#at = at;
    at.form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.#submit();
    });
    at.question.addEventListener("keydown", (event) => {
      if (!sends(event)) return;
      event.preventDefault();
      at.form.requestSubmit();
    });
    at.question.addEventListener("input", () => this.#fit());
    at.stop.addEventListener("click", () => this.#stop());
    document.addEventListener("keydown", (event) => event.key === "Escape" && this.#stop());
    this.clear();
  }

  /** Begin anew. */
  clear() {
    this.#stop();
    this.#turns = [];
    this.#at.turns.replaceChildren(el("p", { class: "empty" }, "Ask something. Under each answer stands who computed it, and how long each part took."));
    this.#at.question.focus();
  }

  #submit() {
    const question = this.#at.question.value.trim();
    if (!question || this.#asking) return;
    this.#at.question.value = "";
    this.#fit();
    if (!this.#turns.length) this.#at.turns.replaceChildren();
    const turn = new Turn(question, { retry: () => this.#again(turn), grown: () => this.#follow() }, this.#speech);
    this.#turns.push(turn);
    this.#at.turns.append(turn.node);
    this.#ask(turn);
  }

  /** Ask a turn once more; what came after it goes. */
  async #again(turn) {
    this.#stop();
    const index = this.#turns.indexOf(turn);
    for (const later of this.#turns.splice(index + 1)) later.node.remove();
    await this.#ask(turn);
  }

  async #ask(turn) {
    const asking = (this.#asking = new AbortController());
    turn.begin(this.#swarm);
    this.#busy(true);
    this.#follow(true);
    try {
      for await (const news of ask(this.#line, this.#body(turn), asking.signal)) {
        if (asking.signal.aborted) return;
        turn.hear(news);
        this.#follow();
      }
    } catch (error) {
      if (asking.signal.aborted) return;
      turn.left("Failed", error.message);
    } finally {
      if (this.#asking === asking) {
        this.#asking = null;
        this.#busy(false);
      }
    }
  }

  #stop() {
    if (!this.#asking) return;
    this.#asking.abort();
    this.#asking = null;
    this.#turns.find((turn) => "busy" in turn.node.dataset)?.left("Stopped");
    this.#busy(false);
  }

  #body(turn) {
    const messages = this.#settings.system ? [{ role: "system", content: this.#settings.system }] : [];
    for (const each of this.#turns) {
      messages.push({ role: "user", content: each.question });
      if (each === turn) break;
      if (each.answer) messages.push({ role: "assistant", content: each.answer });
      else messages.pop(); // what was never answered is no part of the conversation
    }
    return { messages, ...this.#settings.fields };
  }

  #busy(busy) {
    this.#at.send.hidden = busy;
    this.#at.stop.hidden = !busy;
    if (busy && document.activeElement === this.#at.send) this.#at.stop.focus();
    if (!busy && document.activeElement === this.#at.stop) this.#at.question.focus();
  }

  #follow(always = false) {
    const { turns } = this.#at;
    const far = turns.scrollHeight - turns.scrollTop - turns.clientHeight;
    if (always || far < NEAR_PX) turns.scrollTop = turns.scrollHeight;
  }

  #fit() {
    const { question } = this.#at;
    question.style.height = "auto";
    question.style.height = `${Math.min(question.scrollHeight + 2, 200)}px`;
  }
}
