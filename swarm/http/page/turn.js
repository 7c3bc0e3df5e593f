// A question and its answer, as they stand in the conversation.

import { About } from "./answer.js";
import { copyButton, el } from "./dom.js";
import { Prose } from "./markdown.js";

/** Shows one; `deeds` has what its buttons do: edit(question) and retry(). */
export class Turn {
  node = el("article", { class: "turn" });
  answer = "";
  failed = false;
  #deeds;
  #speech;
  #asked = el("div", { class: "asked" });
  #text = el("div", { class: "text" });
  #answer;
  #prose;
  #about = null;
  #due = false;
  #tools = el("div", { class: "tools", hidden: true });

  constructor(question, deeds, speech) {
    this.question = question;
    this.#deeds = deeds;
    this.#speech = speech;
    this.#answer = el("div", { class: "answered", "aria-busy": "false" }, el("h3", { class: "unseen" }, "Answer"), this.#text, this.#tools);
    this.#tools.append(
      copyButton(() => this.answer, "the answer", speech),
      el("button", { type: "button", on: { click: () => deeds.retry() } }, "Retry"),
    );
    this.#showQuestion();
    this.node.append(this.#asked, this.#answer);
  }

  /** An answer is asked for: what was there of another one goes. */
  begin(swarm) {
    this.#about?.left("left"); // its clock stops
    this.#about?.node.remove();
    this.#about = new About(swarm);
    this.#answer.insertBefore(this.#about.node, this.#tools);
    this.answer = "";
    this.failed = false;
    this.#text.replaceChildren();
    this.#prose = new Prose(this.#text);
    this.#tools.hidden = true;
    this.#answer.setAttribute("aria-busy", "true");
    this.node.dataset.busy = "";
    this.#speech.begin();
  }

  /** Something of it has come: see `ask`. */
  hear(news) {
    if (news.kind === "begun") this.#about.begun(news.route);
    else if (news.kind === "text") this.#grow(news.text);
    else if (news.kind === "happened") this.#about.happened(news.event, news.route);
    else {
      this.#end();
      this.#about.ended(news);
      this.#speech.end(this.answer, "Answer complete.");
    }
  }

  /** It ends before its end: `words` say how; `error` why, where that was not wanted. */
  left(words, error = null) {
    this.#end();
    this.#about.left(words);
    this.#speech.end(this.answer, words);
    if (error === null) return;
    this.failed = true;
    this.#text.append(el("p", { class: "error", role: "alert" }, error));
  }

  #grow(text) {
    this.answer += text;
    if (this.#due) return;
    this.#due = true;
    requestAnimationFrame(() => {
      this.#due = false;
      this.#prose.show(this.answer);
      this.#speech.follow(this.answer);
      this.#deeds.grown();
    });
  }

  #end() {
    this.#prose.show(this.answer);
    this.#answer.setAttribute("aria-busy", "false");
    delete this.node.dataset.busy;
    this.#tools.hidden = false;
  }

  #showQuestion() {
    const edit = el("button", { type: "button", on: { click: () => this.#edit() } }, "Edit");
    this.#asked.replaceChildren(el("h3", { class: "unseen" }, "Question"), el("p", {}, this.question), edit);
  }

  #edit() {
    const area = el("textarea", { rows: String(Math.min(10, this.question.split("\n").length + 1)), "aria-label": "Edit the question" });
    area.value = this.question;
    const back = () => {
      this.#showQuestion();
      this.#asked.querySelector("button").focus();
    };
    const form = el("form", { class: "editing" }, area,
      el("div", { class: "deeds" }, el("button", { type: "button", on: { click: back } }, "Cancel"), el("button", { type: "submit", class: "send" }, "Ask again")));
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      if (!area.value.trim()) return;
      this.question = area.value;
      back();
      this.#deeds.retry();
    });
    area.addEventListener("keydown", (event) => {
      if (event.key === "Escape") back();
      else if (sends(event)) {
        event.preventDefault();
        form.requestSubmit();
      }
    });
    this.#asked.replaceChildren(form);
    area.focus();
  }
}

/** Whether a key sends what was written: not while letters are still being composed. */
export const sends = (event) => event.key === "Enter" && !event.shiftKey && !event.isComposing;
