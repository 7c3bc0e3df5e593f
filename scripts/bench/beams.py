"""What beams cost: time per token of 4 beams over 3 nodes over that of greedy decoding, interleaved.

    python scripts/bench/beams.py [--quick] [--quant int8] [--json FILE]

A random 0.5B-shaped Llama, whose beams part at almost every token, is served by three node processes on loopback, and
so is the shipped model, which computes so little that what is measured is passing on. In each turn a thin client
decodes greedily, with 2 and with 4 beams, each from the same prompt; the time of one token is taken off. Ratios are
medians over the turns. `--quick` has fewer layers and turns.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import trio
from common import HALF_BILLION, arguments, local_swarm, report, spans

import swarm
from swarm.cli.demo_nodes import shipped_model
from swarm.decoding import BeamSearch, Greedy, Strategy

PROMPT = list(range(40, 72))
NODES = 3
WAYS: dict[str, Strategy] = {"greedy": Greedy(), "2 beams": BeamSearch(2), "4 beams": BeamSearch(4)}


async def answer_s(client: swarm.Client, strategy: Strategy, tokens: int) -> float:
    """Seconds of an answer of so many tokens."""
    begin = time.perf_counter()
    generation = client.generate(PROMPT, strategy=strategy, max_new_tokens=tokens, eos=())
    async for _ in generation:
        pass
    assert len(generation.answer.tokens) == tokens
    assert not generation.events, generation.events
    return time.perf_counter() - begin


async def measure(addr: str, turns: int, tokens: int) -> dict[str, list[float]]:
    """Milliseconds per token after the first, of each way, by turn."""
    found: dict[str, list[float]] = {name: [] for name in WAYS}
    async with swarm.connect(addr, remember=False) as client:
        assert len((await client.plan_route()).hops) == NODES
        for _ in range(turns):
            for name, strategy in WAYS.items():
                first_s = await answer_s(client, strategy, 1)
                whole_s = await answer_s(client, strategy, tokens)
                found[name].append(1000 * (whole_s - first_s) / (tokens - 1))
    return found


def main() -> None:
    """Measure and print."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--quant", choices=("int8", "int4"), help="of the nodes (default: fp32)")
    options = parser.parse_args()
    extra = ["--threads", "2", *(["--quant", options.quant] if options.quant else [])]
    shape = replace(HALF_BILLION, layers=6) if options.quick else HALF_BILLION
    turns, tokens = (2, 16) if options.quick else (3, 24)
    rows, summary = [], {}
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        random = Path(folder) / "random"
        shape.write(random)
        models = {"random 0.5B": (random, shape.layers, ""), "shipped": (shipped_model(), 8, "_shipped")}
        for name, (path, layers, suffix) in models.items():
            running = stack.enter_context(local_swarm(path, spans(layers, NODES), extra))
            found = trio.run(measure, running.join, turns, tokens)
            for way, times in found.items():
                ratios = [a / b for a, b in zip(times, found["greedy"], strict=True)]
                rows.append(
                    {
                        "model": name,
                        "what": way,
                        "best_ms": min(times),
                        "median_ms": statistics.median(times),
                        "cost": statistics.median(ratios),
                    }
                )
                if way != "greedy":
                    summary[f"beam{way[0]}_cost{suffix}"] = statistics.median(ratios)
    report(summary, rows, options.json)


if __name__ == "__main__":
    main()
