"""What contrastive search costs where states are as wide as those of a model of 8 billion parameters (4,096 numbers).

    python scripts/bench/search.py [--quick] [--json FILE]

Two hosts of an emulated network, which takes root, serve two layers of that width, a third is a client: 50 ms apart.
It decodes by turns greedily and by contrastive search with four candidates, after a short prompt and a longer one.

search_cost          milliseconds for a token of contrastive search by those for a greedy one
search_prompt_cost   the same of the first token, after the longer prompt, which comes back as states
answer_bytes         of one token's answers, four states and their candidates, as they are on the wire
prompt_row_bytes     of each token of the prompt
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import trio
from common import Shape, arguments, report

import swarm
from protocol.candidates import Candidates
from protocol.codec import encode
from protocol.messages import Output
from tests.support.local_swarm import wait_for_news
from tests.support.processes import Process
from tests.wan.netlab import Netlab, why_not

NODES, CLIENT, CANDIDATES = 2, 3, 4
SHAPE = Shape(layers=2, hidden=4096, heads=32, kv_heads=8, intermediate=1024, vocabulary=4096)
RTT_MS = 50.0
PROMPTS = (16, 256)
TURNS, TOKENS = {True: 1, False: 5}, {True: 16, False: 48}
READY_S, ANSWERS_S = 60.0, 600.0


def answer_bytes(rows: int, top: int) -> int:
    """One output of so many rows, with so many candidates each."""
    found = Candidates(
        np.zeros((rows, top), np.int32),
        np.zeros((rows, top), np.float32),
        np.zeros(rows, np.float32),
        np.zeros((rows, 0), np.float32),
        np.zeros((rows, SHAPE.hidden), np.float32),
    )
    return len(encode(Output(1000, 1000, candidates=found)))


def node(lab: Netlab, model: Path, host: int, layers: str, door: str | None) -> Process:
    """A node with a home of its own."""
    home = model.parent / f"home-{host}"
    home.mkdir()
    listen = f"/ip4/{lab.address(host)}/udp/4001/quic-v1"
    words = ["--model", str(model), "--layers", layers, "--home", str(home), "--listen", listen]
    words += ["--threads", "1", *(["--join", door] if door else [])]
    return lab.popen(host, [sys.executable, "-m", "swarm", "node", "--json", *words], name=f"node {host}")


async def decode(turns: int, tokens: int, addrs: list[str]) -> None:
    """On the client's host: each prompt in both ways, so many times; a line of JSON for each answer."""
    ways = {"greedy": "greedy", "search": swarm.ContrastiveSearch(candidates=CANDIDATES)}
    async with swarm.connect(*addrs, remember=False, wait_s=30.0) as client:
        for turn in range(turns + 1):
            for length in PROMPTS:
                prompt = [(7 * turn + 13 * at) % 200 for at in range(length)]
                for way, strategy in ways.items():
                    new = tokens if turn else 4
                    generation = client.generate(prompt, strategy=strategy, max_new_tokens=new, eos=())
                    async for _ in generation:
                        pass
                    answer = generation.answer
                    told = {
                        "prompt": length,
                        "way": way,
                        "ms": 1000 / answer.tokens_per_s,
                        "first": answer.ttft_s,
                    }
                    if turn:
                        print(json.dumps(told), flush=True)
    print("over", flush=True)


def measure(turns: int, tokens: int) -> list[dict[str, Any]]:
    """What the client tells."""
    with tempfile.TemporaryDirectory() as folder, Netlab(CLIENT, 0.0) as lab:
        model = Path(folder) / "model"
        SHAPE.write(model)
        nodes = [node(lab, model, 1, "0:1", None)]
        addrs = [wait_for_news(nodes[0], "ready", READY_S).fields["addrs"][0]]
        nodes.append(node(lab, model, 2, "1:2", addrs[0]))
        addrs.append(wait_for_news(nodes[1], "ready", READY_S).fields["addrs"][0])
        lab.set_rtt(RTT_MS)
        words = [__file__, "--client", str(turns), str(tokens), *addrs]
        client = lab.popen(CLIENT, [sys.executable, *words], name="client")
        client.wait_for_line("^over$", ANSWERS_S)
        told = [json.loads(line) for line in client.lines if line.startswith("{")]
        for each in (client, *nodes):
            each.close()
    return told


def main() -> None:
    """Measure and print."""
    options = arguments(__doc__ or "").parse_args()
    if reason := why_not():
        sys.exit(f"no emulated network here: {reason}")
    told = measure(TURNS[options.quick], TOKENS[options.quick])
    rows: list[dict[str, Any]] = []
    for length in PROMPTS:
        row: dict[str, Any] = {"prompt": length}
        for way in ("greedy", "search"):
            mine = [each for each in told if (each["prompt"], each["way"]) == (length, way)]
            row[f"{way}, ms a token"] = statistics.median(each["ms"] for each in mine)
            row[f"{way}, s to the first"] = statistics.median(each["first"] for each in mine)
        rows.append(row)
    longer = rows[-1]
    summary = {
        "search_cost": longer["search, ms a token"] / longer["greedy, ms a token"],
        "search_prompt_cost": longer["search, s to the first"] / longer["greedy, s to the first"],
        "answer_bytes": float(CANDIDATES * answer_bytes(1, CANDIDATES)),
        "prompt_row_bytes": answer_bytes(15, 1) / 15,
    }
    report(summary, rows, options.json)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--client"]:
        trio.run(decode, int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:])
    else:
        main()
