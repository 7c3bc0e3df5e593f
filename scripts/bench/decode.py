"""Tokens per second of a swarm over those of transformers' generate in one process, interleaved, same threads.

    python scripts/bench/decode.py [--quick] [--quant int8] [--json FILE]

A random 0.5B-shaped Llama is served by 1, 2 and 4 node processes on loopback, in fp32 or as `--quant` says; generate
computes in fp32 either way. In each turn a thin client
decodes greedily through each of them, and generate does in this process, one after the other; ratios are medians over
the turns. `--quick` uses the same shape with fewer layers: those ratios say less, as there is less to compute.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import trio
from common import HALF_BILLION, arguments, forget_torch, local_swarm, report, spans

import swarm

PROMPT = list(range(1, 33))
NODES = (1, 2, 4)


async def decode(addr: str, hops: int, tokens: int) -> float:
    """Tokens per second through the swarm, the first token apart."""
    async with (
        swarm.connect(addr, remember=False) as client,
        client.session(max_tokens=len(PROMPT) + tokens) as session,
    ):
        assert len(session.hops) == hops, session.route
        feed, begin = PROMPT, 0.0
        for index in range(tokens):
            candidates = await session.step(feed)
            assert candidates is not None
            feed = [int(candidates.ids[0, 0])]
            if index == 0:
                begin = time.perf_counter()
        return (tokens - 1) / (time.perf_counter() - begin)


def generate(model: Any, tokens: int) -> float:
    """Tokens per second of transformers' generate, the first token apart."""
    import torch

    ids = torch.tensor([PROMPT])

    def run(count: int) -> float:
        begin = time.perf_counter()
        model.generate(ids, max_new_tokens=count, min_new_tokens=count, do_sample=False)
        return time.perf_counter() - begin

    run(2)
    first_s = run(1)
    return (tokens - 1) / (run(tokens) - first_s)


def main() -> None:
    """Measure and print."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--threads", type=int, default=2, help="of each node, and of generate (default: 2)")
    parser.add_argument("--quant", choices=("int8", "int4"), help="of the nodes (default: fp32)")
    options = parser.parse_args()
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(options.threads)
    shape = replace(HALF_BILLION, layers=8) if options.quick else HALF_BILLION
    turns, tokens = (2, 24) if options.quick else (5, 48)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        path = Path(folder) / "random"
        shape.write(path)
        runs: dict[str, Callable[[], float]] = {}
        for nodes in NODES:
            extra = [
                "--threads",
                str(options.threads),
                *(["--quant", options.quant] if options.quant else []),
            ]
            running = stack.enter_context(local_swarm(path, spans(shape.layers, nodes), extra))
            runs[f"{nodes} node{'s' * (nodes > 1)}"] = partial(trio.run, decode, running.join, nodes, tokens)
        model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
        forget_torch()
        runs["generate"] = partial(generate, model, tokens)
        speeds: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(turns):
            for name, run in runs.items():
                speeds[name].append(run())
    ratios = {
        name: statistics.median(a / b for a, b in zip(found, speeds["generate"], strict=True))
        for name, found in speeds.items()
    }
    rows = [
        {
            "what": name,
            "best_tok_s": max(found),
            "median_tok_s": statistics.median(found),
            "ratio": ratios[name],
        }
        for name, found in speeds.items()
    ]
    summary = {
        f"ratio_{nodes}_node{'s' * (nodes > 1)}": ratios[f"{nodes} node{'s' * (nodes > 1)}"]
        for nodes in NODES
    }
    report(summary, rows, options.json)


if __name__ == "__main__":
    main()
