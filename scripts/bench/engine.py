"""Both engines against transformers' generate, in one process, with the same threads, turn by turn.

    python scripts/bench/engine.py [--quick] [--native] [--json FILE] [--plot FILE.png]

Tokens per second of greedy decoding through one span and through several, of prefill, and what a step costs beside
arithmetic (a model so small that only calls are left). The weights are random, transformers and torch compute in
fp32. The ratio is the median over the turns, in each of which all take theirs one after the other; the speeds are
those of the best turns. On a machine that does other work too, the speeds say little and the ratio is good to 5 %.
The share of the memory's bandwidth is that of the best single steps, head included, by the best reading of memory.
"""

from __future__ import annotations

import itertools
import os
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import HALF_BILLION, Shape, arguments, report, seconds  # sets the environment that OpenMP reads
from plots import draw_bars
from transformers import AutoModelForCausalLM
from transformers.utils import logging

from node.compute.call import run_alone
from node.compute.interfaces import Engine
from node.engine.backend import TorchBackend
from node.engine.threads import configure_threads
from node.native.checkpoint import NativeCheckpoint
from node.native.engine import NativeEngine
from node.native.load import load_kernel
from node.native.packed import Arena
from node.native.precision import PRECISIONS
from protocol.candidates import Candidates, Want
from protocol.model import Span
from protocol.tensors import Tensor, from_numpy

SIXTH = replace(HALF_BILLION, layers=4)
CALLS = Shape(layers=16, hidden=64, heads=4, kv_heads=2, intermediate=128, vocabulary=512)
PROMPT = 32
LONG_PROMPT = 512
NATIVE = ("f32", "int8", "int4")
# Far more than any cache holds.
READ_BYTES = 1 << 28


class Chain:
    """A model in several spans, one engine each."""

    def __init__(self, engines: Sequence[Engine]) -> None:
        self._engines = engines

    @classmethod
    def of_torch(cls, folder: Path, parts: int) -> Chain:
        """In so many spans, by `node.engine`, as a node has it."""
        backend = TorchBackend.open(
            str(folder), cache_dir=None, dtype="f32", device="cpu", threads=torch.get_num_threads()
        )
        cuts = [round(n * backend.model.stages / parts) for n in range(parts + 1)]
        return cls([backend.load(Span(start, stop)) for start, stop in itertools.pairwise(cuts)])

    def greedy(self, prompt: Tensor, tokens: int) -> list[int]:
        """Continue the prompt by so many tokens."""
        caches = [engine.new_cache(engine.span) for engine in self._engines]
        found: list[int] = []
        given = prompt
        while True:
            out: Any = given
            for engine, cache in zip(self._engines, caches, strict=True):
                out = run_alone(engine, cache, cache.length, out, Want(top=1))
            assert isinstance(out, Candidates)
            found.append(int(out.ids[0, 0]))
            if len(found) == tokens:
                return found
            given = from_numpy(out.ids[0])


def compare(
    shape: Shape, folder: Path, parts: tuple[int, ...], tokens: int, turns: int
) -> list[dict[str, Any]]:
    """One row for prefill and one for decoding per way to split."""
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    chains = {n: Chain.of_torch(folder, n) for n in parts}
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
                "engine": "torch",
                "spans": n,
                "engine_tokens_s": units / min(took),
                "transformers_tokens_s": units / min(theirs),
                "ratio": statistics.median(b / a for a, b in zip(took, theirs, strict=True)),
            }
        )
    return rows


def native(
    folder: Path, shape: Shape, tokens: int, turns: int, threads: int
) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Rows of decoding and of a long prefill in each precision, and the summary's keys."""
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    kernel = load_kernel(threads)
    engines = {}
    for name in NATIVE:
        checkpoint = NativeCheckpoint.open(str(folder), PRECISIONS[name])
        engines[name] = NativeEngine.load(checkpoint, Span(0, checkpoint.manifest.stages), kernel)
    prompts = {n: np.arange(1, 1 + n, dtype=np.int32) for n in (PROMPT, LONG_PROMPT)}
    works = {("decode", PROMPT): tokens, ("prefill", LONG_PROMPT): 1}
    times: dict[tuple[str, str], list[float]] = {}
    single: dict[str, list[float]] = {name: [] for name in NATIVE}
    data, reads = Arena().take(READ_BYTES), list[float]()
    data[:] = 1
    for _ in range(turns):
        for (what, length), count in works.items():
            ids = torch.from_numpy(prompts[length].astype(np.int64))[None]
            run = partial(model.generate, ids, do_sample=False, min_new_tokens=count, max_new_tokens=count)
            times.setdefault((what, "transformers"), []).append(seconds(run))
            for name, engine in engines.items():
                greedy = partial(Chain([engine]).greedy, from_numpy(prompts[length]), count)
                times.setdefault((what, name), []).append(seconds(greedy))
        for name, engine in engines.items():
            single[name].append(step_seconds(engine))
            reads.append(seconds(partial(kernel.read, data)))
    rows, summary = [], {}
    for (what, length), count in works.items():
        theirs = times[what, "transformers"]
        for name in NATIVE:
            took = times[what, name]
            units = length if what == "prefill" else count
            ratio = statistics.median(b / a for a, b in zip(took, theirs, strict=True))
            summary[
                f"ratio_{name.replace('f32', 'fp32')}" if what == "decode" else f"prefill_ratio_{name}"
            ] = ratio
            rows.append(
                {
                    "layers": shape.layers,
                    "hidden": shape.hidden,
                    "what": f"{what} {length}" if what == "prefill" else what,
                    "engine": f"{name}, {kernel.isa}",
                    "spans": 1,
                    "engine_tokens_s": units / min(took),
                    "transformers_tokens_s": units / min(theirs),
                    "ratio": ratio,
                }
            )
    bandwidth = READ_BYTES / min(reads)
    embedding_bytes = 4 * shape.vocabulary * shape.hidden
    for name, engine in engines.items():
        read = (engine.weight_bytes - embedding_bytes) / min(single[name])
        summary[f"bandwidth_share_{name}"] = read / bandwidth
        summary[f"steps_s_{name}"] = 1 / min(single[name])
    summary["bandwidth_gb_s"] = bandwidth / 1e9
    return rows, summary


def step_seconds(engine: Engine) -> float:
    """The best of some single steps after a short prompt, head included."""
    cache = engine.new_cache(engine.span)
    run_alone(engine, cache, 0, from_numpy(np.arange(1, 1 + PROMPT, dtype=np.int32)), Want(top=1))
    token = from_numpy(np.ones(1, np.int32))
    return min(seconds(lambda: run_alone(engine, cache, cache.length, token, Want(top=1))) for _ in range(8))


def main() -> None:
    """Measure, print the table, write the JSON."""
    parser = arguments(__doc__ or "", plot=True)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--native", action="store_true", help="the native kernels alone")
    options = parser.parse_args()
    configure_threads(options.threads)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    shape, tokens, turns = (SIXTH, 24, 11) if options.quick else (HALF_BILLION, 16, 13)
    rows: list[dict[str, Any]] = []
    summary: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        large, calls = Path(folder, "large"), Path(folder, "calls")
        shape.write(large)
        if not options.native:
            CALLS.write(calls)
            rows += compare(shape, large, (1, 2, 4), tokens, turns)
            rows += compare(CALLS, calls, (1, 4), 64, turns)
            whole = next(row for row in rows if row["what"] == "decode" and row["spans"] == 1)
            summary["ratio_engine"] = whole["ratio"]
        more, shares = native(large, shape, tokens, turns // 2, options.threads)
    report(summary | shares, rows + more, options.json)
    if options.plot is not None:
        title = f"{shape.layers} layers of a 0.5B shape, {options.threads} threads"
        draw_bars(options.plot, title, "tokens per second, times transformers' generate", ratios(more))


def ratios(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """By what was measured, each engine's."""
    found: dict[str, dict[str, float]] = {}
    for row in rows:
        found.setdefault(row["what"], {})[row["engine"]] = row["ratio"]
    return found


if __name__ == "__main__":
    main()
