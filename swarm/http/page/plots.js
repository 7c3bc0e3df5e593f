// Tokens a second and the time from token to token, over the last two minutes; reroutes are marked in both.

import { el, say, svg } from "./dom.js";
import { ms, rate } from "./words.js";

const SECONDS = 120;
const WIDTH = 240;
const HEIGHT = 56;
const TICK_MS = 1000;

/** Counts what passes, a number each second; the oldest are forgotten. Pure but for `tick`'s caller. */
export class Pace {
  rates = [];
  gaps = [];
  marks = []; // seconds in which something was rerouted
  #tokens = 0;
  #gap = [0, 0]; // sum of milliseconds, tokens
  #marked = false;

  passed(tokens, gap) {
    this.#tokens += tokens;
    if (gap !== null) this.#gap = [this.#gap[0] + gap, this.#gap[1] + tokens];
  }

  mark() {
    this.#marked = true;
  }

  /** A second is over. */
  tick() {
    const [sum, tokens] = this.#gap;
    push(this.rates, this.#tokens);
    push(this.gaps, tokens ? sum / tokens : null);
    push(this.marks, this.#marked);
    [this.#tokens, this.#gap, this.#marked] = [0, [0, 0], false];
  }

  get quiet() {
    return !this.rates.some(Boolean) && !this.marks.some(Boolean);
  }
}

function push(values, value) {
  values.push(value);
  if (values.length > SECONDS) values.shift();
}

/** Draws the pace of a `Swarm`. */
export class Plots {
  #pace = new Pace();
  #drawn = false;
  #rate;
  #gap;

  constructor(swarm, at) {
    this.#rate = new Plot("tokens/s", "tokens per second", rate, bars);
    this.#gap = new Plot("per token", "from token to token", ms, dots);
    at.append(this.#rate.node, this.#gap.node);
    swarm.on("tokens", ({ tokens, gap }) => this.#pace.passed(tokens, gap));
    swarm.on("rerouted", () => this.#pace.mark());
    setInterval(() => this.#tick(), TICK_MS);
  }

  #tick() {
    this.#pace.tick();
    if (document.hidden || (this.#pace.quiet && this.#drawn)) return;
    this.#drawn = this.#pace.quiet;
    this.#rate.draw(this.#pace.rates, this.#pace.marks);
    this.#gap.draw(this.#pace.gaps, this.#pace.marks);
  }
}

class Plot {
  #title;
  #words;
  #shape;
  #now = el("strong", {}, "–");
  #most = el("span", { class: "most" });
  #picture = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img" });
  #values = svg("path", { class: "values" });
  #marks = svg("path", { class: "marks" });

  /** short: what the figure is called; title: the same for who does not see it. */
  constructor(short, title, words, shape) {
    this.#title = title;
    this.#words = words;
    this.#shape = shape;
    this.#values.classList.add(shape.name);
    this.#picture.append(this.#values, this.#marks);
    this.node = el("figure", { class: "plot" }, el("figcaption", {}, this.#now, ` ${short}`, this.#most), this.#picture);
    this.draw([], []);
  }

  draw(values, marks) {
    const most = Math.max(0, ...values.filter((value) => value !== null));
    const latest = [...values].reverse().find((value) => value !== null) ?? null;
    const now = values.at(-1) ?? null;
    say(this.#now, now === null ? "–" : this.#words(now));
    say(this.#most, most ? `at most ${this.#words(most)}` : "nothing yet");
    this.#picture.setAttribute("aria-label", most ? `${this.#title}: ${this.#words(latest)} last, at most ${this.#words(most)} in two minutes` : `${this.#title}: nothing yet`);
    const x = (index) => WIDTH - ((values.length - index) * WIDTH) / SECONDS;
    const y = (value) => HEIGHT - 2 - ((HEIGHT - 6) * value) / (most || 1);
    const known = values.map((value, index) => (value === null ? "" : this.#shape(x(index), y(value)))).join("");
    this.#values.setAttribute("d", known);
    this.#marks.setAttribute("d", marks.map((marked, index) => (marked ? `M${x(index).toFixed(1)} 0V${HEIGHT}` : "")).join(""));
  }
}

// What one second looks like, as a path.
const bars = (x, y) => `M${x.toFixed(1)} ${HEIGHT}V${y.toFixed(1)}h${(WIDTH / SECONDS - 0.4).toFixed(1)}V${HEIGHT}Z`;
const dots = (x, y) => `M${x.toFixed(1)} ${y.toFixed(1)}h1.2`;
