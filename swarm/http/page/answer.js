// How an answer came about: its route with the time at each hop, its figures, and what befell it on the way.

import { el, say } from "./dom.js";
import { hueOf } from "./map.js";
import { count, describe, ms, nameOf, rate, seconds, shortLayers } from "./words.js";

/** The part under an answer. */
export class About {
  node = el("footer", { class: "about" });
  #swarm;
  #events = el("ul", { class: "befell" });
  #bar = el("div", { class: "times", "aria-hidden": "true", hidden: true });
  #hops = el("ol", { class: "hops", "aria-label": "Route of this answer" });
  #figures = el("p", { class: "figures" });
  #began = performance.now();
  #timer;

  constructor(swarm) {
    this.#swarm = swarm;
    this.node.append(this.#events, this.#bar, this.#hops, this.#figures);
    this.#count("waiting for its turn");
    this.#timer = setInterval(() => this.#count(this.#hops.children.length ? "answering" : "waiting for its turn"), 100);
  }

  begun(route) {
    this.#route(route, (hop) => [`${ms(hop.expected_ms)} expected`, false]);
  }

  happened(event, route) {
    const { mark, tone, text, more } = describe(event);
    this.#events.append(el("li", { data: { tone } }, el("span", { class: "mark", "aria-hidden": "true" }, mark), text, more && el("small", {}, ` ${more}`)));
    if (route?.length) this.begun(route);
  }

  /** It is whole. */
  ended({ how, timings, reason }) {
    this.#stop();
    const step = how.steps > 0 ? (1000 * (how.seconds - how.ttft_s)) / how.steps : null;
    this.#route(how.route ?? [], (hop) => [hop.ms === null ? "–" : ms(hop.ms), hop.ms !== null]);
    this.#rest(how.route ?? [], step);
    const perStep = how.steps > 0 && Math.abs(timings.predicted_n - 1 - how.steps) > 1 ? count(how.steps, "step") : null;
    const parts = [
      count(timings.predicted_n, "token"),
      perStep && `in ${perStep}`,
      `${rate(how.tokens_per_s)} tok/s`,
      `first after ${seconds(how.ttft_s)}`,
      `${seconds(how.seconds)} in all`,
      `prompt ${timings.prompt_n + timings.cache_n}${timings.cache_n ? `, of it ${timings.cache_n} held already` : ""}`,
      how.reroutes?.length && `${count(how.reroutes.length, "reroute")} cost ${seconds(how.reroutes.reduce((sum, each) => sum + each.seconds, 0))}`,
      reason === "length" && "cut off: no more tokens were allowed",
    ];
    say(this.#figures, parts.filter(Boolean).join(" · "));
  }

  /** Whoever asked has stopped it, or it broke off. */
  left(words) {
    this.#stop();
    say(this.#figures, `${words} after ${seconds((performance.now() - this.#began) / 1000)}`);
  }

  #stop() {
    clearInterval(this.#timer);
  }

  #count(words) {
    say(this.#figures, `${words} · ${((performance.now() - this.#began) / 1000).toFixed(1)} s`);
  }

  #route(route, told) {
    this.#hops.replaceChildren(...route.map((hop) => {
      const [time, measured] = told(hop);
      return el("li", { class: "hop", vars: { "--hue": hueOf(this.#swarm.place(hop.peer)) }, title: `${hop.peer}: ${hop.layers}` },
        el("span", { class: "peer" }, nameOf(hop.peer)), el("span", { class: "layers" }, shortLayers(hop.stages, this.#swarm.blocks)),
        el("span", { class: measured ? "time" : "time guess" }, time));
    }));
  }

  /** What of a step was no computing: the way between hops, waiting, this server. Nothing, where steps overlap. */
  #rest(route, step) {
    const computing = route.reduce((sum, hop) => sum + (hop.ms ?? 0), 0);
    if (step === null || computing > step || !computing) return;
    this.#hops.append(el("li", { class: "hop rest", title: "between hops, in queues, and here" }, el("span", { class: "peer" }, "network and the rest"), el("span", { class: "time" }, ms(step - computing))));
    const parts = route.map((hop) => el("span", { vars: { "--share": (hop.ms ?? 0) / step, "--hue": hueOf(this.#swarm.place(hop.peer)) } }));
    this.#bar.replaceChildren(...parts, el("span", { class: "rest", vars: { "--share": (step - computing) / step } }));
    this.#bar.hidden = false;
  }
}
