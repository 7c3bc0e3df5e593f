"""The engine against transformers' generate, in one process, with the same threads, turn by turn.

    python scripts/bench/engine.py [--quick] [--json FILE]

Tokens per second of greedy decoding through one span and through several, of prefill, and what a step costs beside
arithmetic (a model so small that only calls are left). The weights are random. The ratio
is the median over the turns, in each of which all take theirs one after the other; the speeds are those of the best
turns. On a machine that does other work too, the speeds say little and the ratio is good to some 5 %.
"""

from __future__ import annotations

import itertools
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import HALF_BILLION, Shape, arguments, report  # sets the environment that OpenMP reads
from transformers import AutoModelForCausalLM
from transformers.utils import logging

from node.engine.checkpoint import Checkpoint
from node.engine.span import SpanEngine
from node.engine.threads import configure_threads
from protocol.candidates import Candidates, Want
from protocol.model import Span
from protocol.tensors import Tensor, from_numpy

SIXTH = replace(HALF_BILLION, layers=4)
CALLS = Shape(layers=16, hidden=64, heads=4, kv_heads=2, intermediate=128, vocabulary=512)
PROMPT = 32


class Chain:
    """A model in several spans, one engine each."""

    def __init__(self, checkpoint: Checkpoint, parts: int) -> None:
        cuts = [round(n * checkpoint.stages / parts) for n in range(parts + 1)]
        spans = [Span(start, stop) for start, stop in itertools.pairwise(cuts)]
        self._engines = [SpanEngine.load(checkpoint, span, dtype="f32") for span in spans]

    def greedy(self, prompt: Tensor, tokens: int) -> list[int]:
        """Continue the prompt by so many tokens."""
        caches = [engine.new_cache(engine.span) for engine in self._engines]
        found: list[int] = []
        given = prompt
        while True:
            out: Any = given
            for engine, cache in zip(self._engines, caches, strict=True):
                out = engine.step(cache, cache.length, out, Want(top=1))
            assert isinstance(out, Candidates)
            found.append(int(out.ids[0, 0]))
            if len(found) == tokens:
                return found
            given = from_numpy(out.ids[0])


def seconds(run: Callable[[], object]) -> float:
    """How long it takes."""
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


def compare(
    shape: Shape, folder: Path, parts: tuple[int, ...], tokens: int, turns: int
) -> list[dict[str, Any]]:
    """One row for prefill and one for decoding per way to split."""
    shape.write(folder)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    checkpoint = Checkpoint.open(str(folder))
    chains = {n: Chain(checkpoint, n) for n in parts}
    prompt = from_numpy(np.arange(1, 1 + PROMPT, dtype=np.int32))
    ids = torch.arange(1, 1 + PROMPT)[None]

    def generate(count: int) -> list[int]:
        out = model.generate(ids, do_sample=False, min_new_tokens=count, max_new_tokens=count)
        found: list[int] = out[0, PROMPT:].tolist()
        return found

    expected = generate(tokens)
    for n, chain in chains.items():
        assert chain.greedy(prompt, tokens) == expected, f"{n} spans give other tokens"
    times: dict[tuple[str, int], list[float]] = {}
    for _ in range(turns):
        for what, count in (("prefill", 1), ("decode", tokens)):
            times.setdefault((what, 0), []).append(seconds(partial(generate, count)))
            for n, chain in chains.items():
                times.setdefault((what, n), []).append(seconds(partial(chain.greedy, prompt, count)))
    rows = []
    for (what, n), took in times.items():
        if not n:
            continue
        theirs = times[what, 0]
        units = PROMPT if what == "prefill" else tokens
        rows.append(
            {
                "layers": shape.layers,
                "hidden": shape.hidden,
                "what": what,
                "spans": n,
                "engine_tokens_s": units / min(took),
                "transformers_tokens_s": units / min(theirs),
                "ratio": statistics.median(b / a for a, b in zip(took, theirs, strict=True)),
            }
        )
    return rows


def main() -> None:
    """Measure, print the table, write the JSON."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    configure_threads(options.threads)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    shape, tokens, turns = (SIXTH, 24, 11) if options.quick else (HALF_BILLION, 16, 13)
    with tempfile.TemporaryDirectory() as folder:
        rows = compare(shape, Path(folder, "large"), (1, 2, 4), tokens, turns)
        rows += compare(CALLS, Path(folder, "calls"), (1, 4), 64, turns)
    whole = next(row for row in rows if row["what"] == "decode" and row["spans"] == 1)
    report({"ratio_engine": whole["ratio"]}, rows, options.json)


if __name__ == "__main__":
    main()
