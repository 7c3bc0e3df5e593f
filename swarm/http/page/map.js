// Who serves what: layers across, nodes down, and how many copies there are of each layer.

import { copyButton, el, moves, say } from "./dom.js";
import { Routes } from "./route.js";
import { alone, runs, verdict } from "./swarm.js";
import { count, ms, nameOf, shortLayers, tokens } from "./words.js";

const COLUMNS = ["node", "layers", "ms/layer", "queue", "free KV", "away"];
const HUES = [168, 262, 32, 330, 208, 98, 292, 60]; // by the order in which nodes were seen
const LIGHT_MS = 350;
const OTHERS_NAMED = 4; // models
const CROWDED = 24; // stages: from here on a letter has no room over one of them

export const hueOf = (place) => String(HUES[place % HUES.length]);

/** Shows a `Swarm` in these elements, and keeps to it. */
export class SwarmMap {
  #swarm;
  #at; // {map, verdict, holes}
  #speech;
  #rows = new Map(); // by peer
  #body = el("div", { class: "rows", role: "rowgroup" });
  #axis = el("div", { class: "axis", "aria-hidden": "true" });
  #copies = el("div", { class: "bar copies" });
  #legend = el("p", { class: "legend" });
  #routes;
  #shape = ""; // what the axis and the holes were drawn for
  #holes = "";

  constructor(swarm, at, speech) {
    this.#swarm = swarm;
    this.#at = at;
    this.#speech = speech;
    const table = el("div", { class: "table-of-nodes", role: "table", "aria-label": "Nodes and the layers that they serve" }, this.#head(), this.#body, this.#foot());
    at.map.append(table, this.#legend);
    this.#routes = new Routes(table, (peer) => this.#rows.get(peer));
    new ResizeObserver(() => this.#drawRoutes()).observe(table);
    swarm.on("changed", () => this.show());
    swarm.on("tokens", ({ answer }) => this.#light(answer));
  }

  show() {
    const { model, nodes, copies } = this.#swarm;
    const said = this.#swarm.status?.joined === false ? { tone: "bad", text: `Not in the swarm yet: ${this.#swarm.status.why}` } : verdict(model, nodes, copies);
    if (!this.#swarm.status) return;
    this.#at.verdict.dataset.tone = said.tone;
    say(this.#at.verdict, said.text);
    this.#at.map.hidden = !model;
    if (model) this.#drawAxis(model.layers, copies);
    this.#drawRows(nodes, copies);
    this.#drawHoles(model);
    this.#drawLegend(nodes);
    this.#drawRoutes();
  }

  #head() {
    const cells = COLUMNS.map((name) => el("div", { role: "columnheader" }, name === "layers" ? el("span", { class: "unseen" }, name) : name));
    cells[1].append(this.#axis);
    return el("div", { role: "rowgroup" }, el("div", { class: "row head", role: "row" }, ...cells));
  }

  #foot() {
    return el("div", { role: "rowgroup" },
      el("div", { class: "row foot", role: "row" }, el("div", { role: "rowheader" }, "copies"), el("div", { role: "cell", class: "wide" }, this.#copies)));
  }

  #drawAxis(layers, copies) {
    const shape = `${layers} ${copies}`;
    if (shape === this.#shape) return;
    this.#shape = shape;
    const stages = layers + 2;
    const step = Math.max(1, Math.ceil(layers / 4 / (layers > 8 ? 2 : 1)) * (layers > 8 ? 2 : 1));
    const ticks = stages > CROWDED ? [[-0.022 * stages, "E"], [1.022 * stages, "H"]] : [[0.5, "E"], [stages - 0.5, "H"]];
    for (let layer = 0; layer <= layers; layer += step) ticks.push([layer + 1, String(layer)]);
    this.#axis.replaceChildren(...ticks.map(([at, text]) => el("span", { class: "tick", vars: { "--at": at / stages } }, text)));
    const cells = runs(copies).map(({ from, to, value }) => {
      const what = `${shortLayers([from, to], layers)}: ${value === 0 ? "nobody" : value === 1 ? "1 copy" : `${value} copies`}`;
      const tone = value === 0 ? "none" : value === 1 ? "one" : "some";
      return el("div", { class: "copy-run", role: "img", "aria-label": what, title: what, data: { tone }, vars: { "--from": from / stages, "--to": to / stages } }, String(value));
    });
    this.#copies.replaceChildren(...cells);
  }

  #drawRows(nodes, copies) {
    const peers = new Set(nodes.map((node) => node.peer));
    for (const [peer, row] of this.#rows) {
      if (peers.has(peer)) continue;
      row.node.remove();
      this.#rows.delete(peer);
    }
    nodes.forEach((node, index) => {
      const row = this.#rows.get(node.peer) ?? this.#newRow(node);
      if (this.#body.children[index] !== row.node) this.#body.insertBefore(row.node, this.#body.children[index] ?? null);
      this.#fill(row, node, copies);
    });
  }

  #newRow(node) {
    const numerics = el("span", { class: "numerics" });
    const name = el("span", { class: "name", title: node.peer }, nameOf(node.peer), numerics);
    const state = el("span", { class: "state" });
    const span = el("div", { class: "span" }, el("span", { class: "span-words" }));
    const bar = el("div", { class: "bar" }, span);
    const cells = COLUMNS.slice(2).map((column) => el("div", { role: "cell", class: "figure", data: { column } }));
    const row = el("div", { class: "row node", role: "row", vars: { "--hue": hueOf(this.#swarm.place(node.peer)) } },
      el("div", { role: "rowheader", class: "who" }, name, state), el("div", { role: "cell", class: "wide" }, bar), ...cells);
    const made = { node: row, state, numerics, span, bar, cells, used: [], drawn: "" };
    this.#rows.set(node.peer, made);
    return made;
  }

  #fill(row, node, copies) {
    const state = node.lost && node.state === "serving" ? "lost" : node.state;
    const only = node.taken && !node.lost && alone(node, copies) ? " · alone" : "";
    row.node.dataset.state = node.taken || state !== "serving" ? state : "left out";
    say(row.state, `${row.node.dataset.state}${only}`);
    row.state.title = only ? "it has layers that nobody else serves" : "";
    const { blocks } = this.#swarm;
    const stages = blocks + 2;
    row.span.style.setProperty("--from", node.stages[0] / stages);
    row.span.style.setProperty("--to", node.stages[1] / stages);
    row.span.toggleAttribute("data-late", node.stages[0] > 0.7 * stages);
    row.span.title = `${node.serves}, ${node.numerics}`;
    say(row.span.firstChild, shortLayers(node.stages, blocks));
    say(row.numerics, node.numerics);
    const known = node.state !== "silent";
    const free = node.kv_tokens_total ? node.kv_tokens / node.kv_tokens_total : 0;
    const figures = [ms(node.decode_ms), ms(node.queue_ms), tokens(node.kv_tokens), ms(node.rtt_ms)];
    figures.forEach((text, index) => say(row.cells[index], known ? text : "–"));
    row.cells[2].style.setProperty("--free", known ? free : 0);
    row.cells[2].title = `room for ${node.kv_tokens} of ${node.kv_tokens_total} tokens`;
    this.#use(row, node, stages);
  }

  /** Mark what answers under way use of a node. */
  #use(row, node, stages) {
    const hops = this.#swarm.routes.flatMap(({ route }) => route.filter((hop) => hop.peer === node.peer));
    const spans = [...new Set(hops.map((hop) => hop.stages.join()))];
    const drawn = spans.join(" ");
    if (row.drawn === drawn) return;
    row.drawn = drawn;
    for (const each of row.used) each.remove();
    row.used = spans.map((each) => {
      const [from, to] = each.split(",").map(Number);
      return el("div", { class: "used", vars: { "--from": from / stages, "--to": to / stages } });
    });
    row.bar.append(...row.used);
    row.node.toggleAttribute("data-used", spans.length > 0);
  }

  #drawHoles(model) {
    const holes = model?.missing ?? [];
    const drawn = JSON.stringify(holes);
    if (drawn === this.#holes) return;
    this.#holes = drawn;
    this.#at.holes.replaceChildren(...holes.map((hole) =>
      el("div", { class: "hole" }, el("p", {}, `Nobody serves ${hole.serves}. To serve it, run:`),
        el("div", { class: "command" }, el("code", {}, hole.command), copyButton(() => hole.command, `the command that serves ${hole.serves}`, this.#speech)))));
  }

  #drawLegend(nodes) {
    const parts = ["E embedding, H head."];
    if (this.#swarm.answers.size) parts.push(`The line is the way of ${count(this.#swarm.answers.size, "answer")} under way.`);
    else if (this.#swarm.latest.length) parts.push("The dotted line is the way of the last answer.");
    if (nodes.some((node) => node.lost || node.state === "silent")) parts.push("Hatched: does not answer.");
    const others = this.#swarm.others.map((each) => `${each.model} (${count(each.nodes.length, "node")})`);
    const more = others.splice(OTHERS_NAMED).length;
    if (others.length) parts.push(`Also in this swarm: ${others.join(", ")}${more ? ` and ${count(more, "other model")}` : ""}.`);
    say(this.#legend, parts.join(" "));
  }

  #drawRoutes() {
    if (this.#swarm.model) this.#routes.draw(this.#swarm.routes, this.#swarm.latest, this.#swarm.blocks + 2);
  }

  /** Light the hops of an answer one after the other: a token has passed. */
  #light(answer) {
    const key = JSON.stringify(answer.route.map((hop) => [hop.peer, hop.stages]));
    this.#routes.spark(key);
    if (!moves()) return;
    answer.route.forEach((hop, index) => {
      for (const used of this.#rows.get(hop.peer)?.used ?? []) {
        if (used.getAnimations().length < 2) used.animate([{ opacity: 0.25 }, { opacity: 1, offset: 0.3 }, { opacity: 0.55 }], { duration: LIGHT_MS, delay: index * 90 });
      }
    });
  }
}
