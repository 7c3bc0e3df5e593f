// How answers are asked for: what is left empty is as the server has it. Kept in this browser.

import { el } from "./dom.js";

const STORE = "swarm-settings";
const NUMBERS = [
  { name: "temperature", label: "Temperature", min: 0, max: 10, step: "any", hint: "0 takes the best token" },
  { name: "top_p", label: "Top p", min: 0, max: 1, step: "any", hint: "1" },
  { name: "top_k", label: "Top k", min: 0, step: 1, hint: "all" },
  { name: "min_p", label: "Min p", min: 0, max: 1, step: "any", hint: "0" },
  { name: "repetition_penalty", label: "Repetition penalty", min: 0, step: "any", hint: "1" },
  { name: "max_tokens", label: "Tokens at most", min: 1, step: 1, hint: "what fits" },
  { name: "seed", label: "Seed", min: 0, step: 1, hint: "drawn" },
];

/** A form in `at`; `fields` is what of a request it says, `system` the system prompt. */
export class Settings {
  #at;
  #strategy = el("select", { id: "set-strategy", name: "strategy" }, option("auto"));
  #inputs;

  constructor(at, swarm) {
    this.#at = at;
    const system = field("set-system", "System prompt", el("textarea", { id: "set-system", name: "system", rows: "2" }), "wide");
    const stop = field("set-stop", "Stop at (one a line)", el("textarea", { id: "set-stop", name: "stop", rows: "2" }));
    const parameters = field("set-parameters", "Its parameters", el("input", { id: "set-parameters", name: "parameters", placeholder: "beams=4,returned=2", spellcheck: "false" }));
    at.append(system, field("set-strategy", "Strategy", this.#strategy), parameters, ...NUMBERS.map(number), stop,
      el("div", { class: "field end" }, el("button", { type: "reset" }, "As it was")));
    this.#inputs = [...at.querySelectorAll("input, textarea, select")];
    this.#load();
    at.addEventListener("input", () => this.#save());
    at.addEventListener("reset", () => setTimeout(() => this.#save()));
    at.addEventListener("submit", (event) => event.preventDefault());
    swarm.on("changed", () => this.#offer(swarm.status?.strategies ?? ["auto"]));
  }

  get system() {
    return this.#value("system").trim();
  }

  /** Of a request to /v1/chat/completions. */
  get fields() {
    const said = NUMBERS.map(({ name }) => [name, this.#value(name)]).filter(([, value]) => value !== "");
    const stop = this.#value("stop").split("\n").filter(Boolean);
    const parameters = this.#value("parameters").trim();
    const strategy = parameters ? `${this.#value("strategy")}:${parameters}` : this.#value("strategy");
    return {
      ...Object.fromEntries(said.map(([name, value]) => [name, Number(value)])),
      ...(stop.length ? { stop } : {}),
      swarm: { events: true, ...(strategy === "auto" ? {} : { strategy }) },
    };
  }

  #value(name) {
    return this.#at.elements[name].value;
  }

  /** What the server can do; what was chosen before stays. */
  #offer(names) {
    if ([...this.#strategy.options].map((each) => each.value).join() === names.join()) return;
    const chosen = this.#strategy.dataset.wanted ?? this.#strategy.value;
    this.#strategy.replaceChildren(...names.map(option));
    this.#strategy.value = names.includes(chosen) ? chosen : "auto";
  }

  #save() {
    const said = Object.fromEntries(this.#inputs.map((input) => [input.name, input.value]));
    this.#strategy.dataset.wanted = this.#strategy.value;
    localStorage.setItem(STORE, JSON.stringify(said));
  }

  #load() {
    let said;
    try {
      said = JSON.parse(localStorage.getItem(STORE)) ?? {};
    } catch {
      said = {};
    }
    for (const input of this.#inputs) if (typeof said[input.name] === "string") input.value = said[input.name];
    if (said.strategy) this.#strategy.dataset.wanted = said.strategy;
  }
}

const option = (name) => el("option", { value: name }, name.replaceAll("_", " "));

function number({ name, label, hint, ...limits }) {
  return field(`set-${name}`, label, el("input", { id: `set-${name}`, name, type: "number", inputmode: "decimal", placeholder: hint, ...limits }));
}

const field = (id, label, input, kind = "") => el("div", { class: `field ${kind}` }, el("label", { for: id }, label), input);
