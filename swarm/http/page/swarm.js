// What is known of the swarm, from what the server says: pure, but for the clock that it is given.

const ALIKE_S = 5; // reroutes for one reason within this time are one: each answer under way has its own
const LOST_MS = 60_000; // how long a node that failed in an answer is marked, unless it serves again
const KEPT = 60; // events
const PLACES = 1024; // peers that are remembered: identities are free
const ANSWERS_KEPT = 3; // among them: many answers leave the rest to be seen
const NO_HOPS = [];

/** Holds the state and tells `changed` whenever it is another; `on(name, hear)` is told what happens. */
export class Swarm {
  status = null;
  answers = new Map(); // by id: {route, tokens, since, last}
  latest = NO_HOPS; // the route of the answer that ended last
  lost = new Map(); // peer -> when it failed in an answer
  events = []; // the newest first
  #hearers = {};
  #seen = []; // of events, the latest
  #order = new Map(); // peer -> its place on the map, kept while the page is open
  #next = 0;
  #now;

  constructor(now = () => performance.now()) {
    this.#now = now;
  }

  on(name, hear) {
    (this.#hearers[name] ??= []).push(hear);
  }

  /** Take up what the server said. */
  hear(name, fields) {
    if (name === "status") this.#state(fields);
    else if (name === "event") this.#event(fields);
    else if (name === "answer") this.#answer(fields);
    this.#tell("changed");
  }

  /** The model that is served here: what the map shows. */
  get model() {
    const digest = this.status?.model?.digest;
    return this.status?.models.find((each) => each.digest === digest) ?? null;
  }

  /** Other models that nodes of this swarm serve. */
  get others() {
    return (this.status?.models ?? []).filter((each) => each !== this.model);
  }

  get blocks() {
    return this.model?.layers ?? 0;
  }

  /** Nodes in a steady order, with `lost` where one has failed in an answer. */
  get nodes() {
    const nodes = (this.model?.nodes ?? []).map((node) => ({ ...node, lost: this.#isLost(node) }));
    return nodes.sort((a, b) => a.stages[0] - b.stages[0] || a.stages[1] - b.stages[1] || this.place(a.peer) - this.place(b.peer));
  }

  /** How many serve each stage, without those that have failed since the map was asked for. */
  get copies() {
    const copies = [...(this.model?.copies ?? [])];
    for (const { taken, lost, stages } of this.nodes) {
      if (taken && lost) for (let stage = stages[0]; stage < stages[1]; stage++) copies[stage]--;
    }
    return copies;
  }

  /** A small number that is the peer's as long as the page is open. */
  place(peer) {
    if (!this.#order.has(peer)) this.#order.set(peer, this.#next++);
    return this.#order.get(peer);
  }

  /** Routes of answers under way, each once, with how many go along it. */
  get routes() {
    const found = new Map();
    for (const { route } of this.answers.values()) {
      const key = JSON.stringify(route.map((hop) => [hop.peer, hop.stages]));
      const same = found.get(key) ?? { key, route, answers: 0 };
      same.answers++;
      found.set(key, same);
    }
    return [...found.values()];
  }

  #isLost(node) {
    const since = this.lost.get(node.peer);
    return since !== undefined && this.#now() - since < LOST_MS;
  }

  #state(status) {
    const before = this.model;
    this.status = status;
    if (this.model && before?.digest === this.model.digest) {
      for (const event of differences(before.nodes, this.model.nodes)) this.#happened({ ...event, at: Date.now() / 1000 });
    }
    this.#forget();
    const alive = new Map((status.doing.under_way ?? []).map((each) => [each.id, each.route]));
    for (const id of this.answers.keys()) if (!alive.has(id)) this.answers.delete(id);
    for (const [id, route] of alive) if (!this.answers.has(id)) this.#begin(id, route);
  }

  /** Let go of what is over. That a node is silent says the map from now on; the mark is for the seconds before. */
  #forget() {
    for (const node of this.model?.nodes ?? []) if (node.state === "silent") this.lost.delete(node.peer);
    for (const [peer, since] of this.lost) if (this.#now() - since > LOST_MS) this.lost.delete(peer);
    if (this.#order.size <= PLACES) return;
    const here = new Set(this.model?.nodes.map((node) => node.peer));
    for (const peer of this.#order.keys()) if (!here.has(peer)) this.#order.delete(peer);
  }

  #event(event) {
    const key = `${event.number} ${event.at}`;
    if (this.#seen.includes(key)) return; // told again after a reconnection
    this.#seen = [...this.#seen.slice(-KEPT), key];
    if (event.kind === "rerouted" && !event.past) {
      this.lost.set(event.lost, this.#now());
      this.#tell("rerouted", event);
    }
    this.#happened(event);
  }

  #answer(said) {
    const answer = this.answers.get(said.id);
    if (said.kind === "began") this.#begin(said.id, said.route);
    else if (!answer) return;
    else if (said.kind === "moved") answer.route = said.route;
    else if (said.kind === "tokens") this.#count(answer, said.tokens);
    else this.#end(answer, said);
  }

  #begin(id, route) {
    const now = this.#now();
    this.answers.set(id, { id, route, tokens: 0, began: now, last: null });
  }

  #count(answer, tokens) {
    const now = this.#now();
    const fresh = tokens - answer.tokens;
    const gap = answer.last === null ? null : now - answer.last;
    Object.assign(answer, { tokens, last: now });
    if (fresh > 0) this.#tell("tokens", { answer, tokens: fresh, gap });
  }

  #end(answer, said) {
    if (said.tokens > answer.tokens) this.#count(answer, said.tokens);
    this.answers.delete(said.id);
    this.latest = said.route ?? answer.route;
    if (said.kind === "ended") this.#happened({ ...said, at: Date.now() / 1000 });
  }

  #happened(event) {
    const same = this.events.find((each) => alike(each, event));
    if (same) {
      Object.assign(same, { answers: (same.answers ?? 1) + 1, seconds: Math.max(same.seconds, event.seconds) });
      return this.#tell("happened", same);
    }
    const earlier = event.past ? this.events.findIndex((each) => each.at <= event.at) : 0;
    this.events.splice(earlier < 0 ? this.events.length : earlier, 0, event);
    let answers = 0;
    const counts = (each) => each.kind !== "ended" || ++answers <= ANSWERS_KEPT;
    this.events = this.events.filter(counts).slice(0, KEPT);
    this.#tell("happened", event);
  }

  #tell(name, fields) {
    for (const hear of this.#hearers[name] ?? []) hear(fields);
  }
}

/** Whether two answers were rerouted in the same way, at the same time. */
function alike(one, other) {
  const key = ({ kind, lost, layers, replacements }) => JSON.stringify([kind, lost, layers, replacements]);
  return other.kind === "rerouted" && key(one) === key(other) && Math.abs(one.at - other.at) < ALIKE_S;
}

/** What has become of nodes between two states. */
export function differences(before, after) {
  const events = [];
  const were = new Map(before.map((node) => [node.peer, node]));
  for (const node of after) {
    const old = were.get(node.peer);
    were.delete(node.peer);
    const served = old?.state === "serving";
    const told = { peer: node.peer, serves: node.serves };
    if (!served && node.state === "serving") events.push({ kind: "joined", ...told });
    if (served && node.state === "silent") events.push({ kind: "silent", ...told });
    if (served && node.state === "gone") events.push({ kind: "gone", ...told });
  }
  for (const old of were.values()) {
    if (old.state !== "silent") events.push({ kind: "gone", peer: old.peer, serves: old.serves });
  }
  return events;
}

/** Equal neighbours as runs: [{from, to, value}]. */
export function runs(values) {
  const found = [];
  values.forEach((value, index) => {
    if (found.length && found.at(-1).value === value) found.at(-1).to = index + 1;
    else found.push({ from: index, to: index + 1, value });
  });
  return found;
}

/** Whether all is served, in a sentence, and how well: "bad", "thin" or "good". */
export function verdict(model, nodes, copies) {
  if (!model) return { tone: "bad", text: "Nobody serves this model now." };
  if (!model.complete) {
    const holes = model.missing.map((hole) => hole.serves).join(", ");
    return { tone: "bad", text: `Nobody serves ${holes}: no answer is possible until somebody does.` };
  }
  const least = Math.min(...copies);
  if (least < 1) return { tone: "bad", text: "Some layers are served by nobody any more." };
  const some = nodes.filter((node) => node.taken && !node.lost && alone(node, copies));
  if (least > 1) return { tone: "good", text: `Every layer is served at least ${least === 2 ? "twice" : `${least} times`}: any one node may leave.` };
  const words = some.length === 1 ? "one node has layers that nobody else has" : `${some.length} nodes have layers that nobody else has`;
  return { tone: "thin", text: `Every layer is served; ${words}.` };
}

/** Whether a stage is served by this node alone. */
export const alone = (node, copies) => copies.slice(...node.stages).includes(1);
