// How to join the swarm and how to call it, from this page's own address; nothing is shown before it is known.

import { copyButton, el } from "./dom.js";

/** Shows the commands for a `Swarm`; `keyed()` is whether this server asks for a key. */
export class Commands {
  #at;
  #swarm;
  #keyed;
  #speech;
  #drawn = "";

  constructor(swarm, at, keyed, speech) {
    this.#at = at;
    this.#swarm = swarm;
    this.#keyed = keyed;
    this.#speech = speech;
    swarm.on("changed", () => this.#show());
  }

  #show() {
    const commands = this.#swarm.status?.commands;
    if (!commands) return;
    const shown = [
      ["Serve a part of it", commands.node, local(commands.node)],
      ["Chat in a terminal", commands.chat, local(commands.chat)],
      ["curl", curl(location.origin, this.#keyed()), null],
      ["Python", python(location.origin, this.#swarm.status.model.name, this.#keyed()), null],
    ];
    const drawn = JSON.stringify(shown);
    if (drawn === this.#drawn) return;
    this.#drawn = drawn;
    this.#at.replaceChildren(...shown.map(([title, text, note]) => this.#command(title, text, note)));
  }

  #command(title, text, note) {
    return el("div", { class: "command-of" },
      el("h3", {}, title),
      el("div", { class: "command" }, el("pre", { tabindex: "0", role: "region", "aria-label": title }, el("code", {}, text)), copyButton(() => text, `the command: ${title}`, this.#speech)),
      note && el("p", { class: "note" }, note));
  }
}

const local = (command) => (/\/ip4\/127\.|\/ip6\/::1\//.test(command) ? "This address is of the machine itself: from others, nodes must listen on an address that they reach." : null);

/** A request by curl. */
export function curl(origin, keyed) {
  const key = keyed ? ` \\\n  -H "Authorization: Bearer $SWARM_API_KEY"` : "";
  return `curl ${origin}/v1/chat/completions -H 'Content-Type: application/json'${key} \\\n  -d '{"messages": [{"role": "user", "content": "Hello"}], "stream": true}'`;
}

/** A programme with OpenAI's client. */
export function python(origin, model, keyed) {
  const [first, key] = keyed ? ["import os\n", 'os.environ["SWARM_API_KEY"]'] : ["", '"none"'];
  return `${first}from openai import OpenAI

client = OpenAI(base_url="${origin}/v1", api_key=${key})
answer = client.chat.completions.create(
    model=${JSON.stringify(model)}, messages=[{"role": "user", "content": "Hello"}]
)
print(answer.choices[0].message.content)`;
}
