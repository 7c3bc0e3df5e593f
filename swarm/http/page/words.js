// Numbers, peers and events as people read them. Pure.

/** A peer in a few letters, as the command line has it: ids begin alike, so the last ones tell. */
export const nameOf = (peer) => `…${String(peer).slice(-6)}`;

/** A text with the peers in it by their short names. */
export const withNames = (text) => String(text).replace(/12D3KooW\w{44}/g, nameOf);

/** Milliseconds with three digits at most. */
export function ms(value) {
  if (value === null || value === undefined) return "–";
  if (value < 0.005) return "0 ms";
  if (value >= 1000) return `${(value / 1000).toFixed(value >= 10000 ? 0 : 1)} s`;
  return `${value >= 100 ? value.toFixed(0) : value >= 10 ? value.toFixed(1) : value.toFixed(2)} ms`;
}

/** Seconds; those of less than a tenth as milliseconds. */
export function seconds(value) {
  if (value < 0.1) return `${(1000 * value).toFixed(value < 0.01 ? 1 : 0)} ms`;
  return `${value >= 10 ? value.toFixed(1) : value.toFixed(2)} s`;
}

export const rate = (value) => (value >= 100 ? value.toFixed(0) : value.toFixed(1));

/** A count with its noun. */
export const count = (number, noun) => `${number} ${noun}${number === 1 ? "" : "s"}`;

/** Tokens in few digits. */
export function tokens(value) {
  if (value < 10_000) return String(value);
  return value < 1_000_000 ? `${Math.round(value / 1000)}k` : `${(value / 1_000_000).toFixed(1)}M`;
}

export const clock = (at) => new Date(at * 1000).toLocaleTimeString([], { hour12: false });

/** Layers shorter than the server says them: "E + 0:4", "4:8 + H". */
export function shortLayers([start, stop], blocks) {
  const first = Math.max(start, 1) - 1;
  const last = Math.min(stop, blocks + 1) - 1;
  return [start === 0 && "E", first < last && `${first}:${last}`, stop === blocks + 2 && "H"]
    .filter(Boolean)
    .join(" + ");
}

/** What happened, in a line, and of which kind: "bad", "odd" or "good". */
export function describe(event) {
  switch (event.kind) {
    case "rerouted": {
      const by = event.replacements.map(nameOf).join(" and ");
      const each = event.answers ? `, in ${event.answers} answers` : "";
      const text = `Lost ${nameOf(event.lost)}: ${event.layers} now at ${by}, after ${seconds(event.seconds)}${each}`;
      return { mark: "↻", tone: "bad", text, more: withNames(event.reason) };
    }
    case "altered":
      return {
        mark: "≠",
        tone: "odd",
        text: `${event.layers} now in ${event.after}, before in ${event.before}: the answer may differ from here on`,
      };
    case "bridged": {
      const [one, other] = event.peers.map(nameOf);
      return { mark: "⇄", tone: "odd", text: `${one} and ${other} do not reach each other: this server carries between them`, more: withNames(event.reason) };
    }
    case "waiting":
      return { mark: "…", tone: "bad", text: withNames(event.text), more: `waits up to ${seconds(event.seconds)}` };
    case "joined":
      return { mark: "+", tone: "good", text: `${nameOf(event.peer)} serves ${event.serves}` };
    case "silent":
      return { mark: "✕", tone: "bad", text: `${nameOf(event.peer)} does not answer any more; it served ${event.serves}` };
    case "gone":
      return { mark: "–", tone: "odd", text: `${nameOf(event.peer)} is gone; it served ${event.serves}` };
    case "ended": {
      const moved = event.reroutes ? `, ${count(event.reroutes, "reroute")}` : "";
      return {
        mark: "✓",
        tone: "plain",
        text: `An answer of ${count(event.tokens, "token")}, ${rate(event.tokens_per_s)} tok/s, the first after ${seconds(event.ttft_s)}${moved}`,
      };
    }
    default:
      return { mark: "i", tone: "plain", text: withNames(event.text ?? event.kind) };
  }
}
