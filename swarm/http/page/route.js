// Routes over the map: a line from node to node through the layers, and a spark along it where tokens pass.

import { moves, svg } from "./dom.js";

const DRAWN = 4; // routes at once
const SPARKS = 5; // along one route at once
const SPARK_MS = 700;
const LANE_PX = 4; // between two routes that go alike

/** Draws over `frame`; `place(peer)` is {bar: element} of a row there, or undefined. */
export class Routes {
  #frame;
  #place;
  #canvas = svg("svg", { class: "routes", "aria-hidden": "true" });
  #lines = new Map(); // key -> {path, node, sparks}

  constructor(frame, place) {
    this.#frame = frame;
    this.#place = place;
    frame.append(this.#canvas);
  }

  /** Draw these: {key, route, answers}; and `latest`, of the last answer, where none is under way. */
  draw(routes, latest, stages) {
    const shown = routes.slice(0, DRAWN).map((each) => ({ ...each, live: true }));
    if (!shown.length && latest.length) shown.push({ key: "latest", route: latest, live: false });
    const keys = new Set(shown.map((each) => each.key));
    for (const [key, line] of this.#lines) {
      if (keys.has(key)) continue;
      line.node.remove();
      this.#lines.delete(key);
    }
    const origin = this.#frame.getBoundingClientRect();
    this.#canvas.setAttribute("width", this.#frame.scrollWidth);
    this.#canvas.setAttribute("height", this.#frame.scrollHeight);
    shown.forEach((each, lane) => this.#line(each, this.#path(each.route, stages, origin, lane * LANE_PX)));
  }

  /** Tokens have passed along the route with this key. */
  spark(key) {
    const line = this.#lines.get(key);
    if (!line || line.sparks >= SPARKS || !moves()) return;
    const spark = svg("path", { class: "spark", d: line.path, pathLength: "100" });
    line.node.append(spark);
    line.sparks++;
    const animation = spark.animate([{ strokeDashoffset: 8 }, { strokeDashoffset: -100 }], { duration: SPARK_MS, easing: "linear" });
    animation.onfinish = animation.oncancel = () => {
      spark.remove();
      line.sparks--;
    };
  }

  #line({ key, live }, path) {
    let line = this.#lines.get(key);
    if (!line) {
      const node = svg("g", { class: live ? "route" : "route latest" }, svg("path", { class: "way" }));
      line = { path: "", node, sparks: 0 };
      this.#lines.set(key, line);
      this.#canvas.append(node);
    }
    if (line.path === path) return;
    line.path = path;
    for (const each of line.node.querySelectorAll("path")) each.setAttribute("d", path);
  }

  #path(route, stages, origin, shift) {
    const points = [];
    for (const hop of route) {
      const bar = this.#place(hop.peer)?.bar.getBoundingClientRect();
      if (!bar || !bar.width) continue;
      const y = bar.bottom - origin.top + this.#frame.scrollTop + 4 + shift;
      const x = (stage) => bar.left - origin.left + this.#frame.scrollLeft + (bar.width * stage) / stages;
      points.push([x(hop.stages[0]) + shift / 2, y], [x(hop.stages[1]) + shift / 2, y]);
    }
    return points.map(([x, y], index) => `${index ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`).join("");
  }
}
