"""The engine on a graphics card against transformers' generate there, turn by turn, in bf16.

    python scripts/bench/gpu.py [--quick] [--device cuda] [--json FILE]

Tokens per second of greedy decoding by 1 to 16 sessions at once, and of a long prompt; random weights. transformers
decodes a batch of as many prompts of one length; ours are sessions, each with a length and a cache of its own. The
ratio is the median over the turns, in which both take theirs one after the other; the speeds are those of the best
turns. `aggregate_16` is what sixteen sessions get together by what one gets. With `--device cpu` a sixth of a model
runs in fp32, which shows that all works, and the summary has `aggregate_8_fp32`.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import HALF_BILLION, Shape, arguments, report, seconds  # sets the environment that OpenMP reads
from transformers import AutoModelForCausalLM
from transformers.utils import logging

from node.compute.interfaces import Call, KvCache
from node.engine.checkpoint import Checkpoint
from node.engine.span import SpanEngine
from protocol.candidates import Candidates, Want
from protocol.model import Span
from protocol.tensors import from_numpy

BILLION = Shape(layers=16, hidden=2048, heads=32, kv_heads=8, intermediate=8192, vocabulary=32_000)
BEST = Want(top=1)


@dataclass(frozen=True)
class Plan:
    """How much is measured, in tokens, sessions and turns."""

    prompt: int = 128
    long_prompt: int = 1024
    sessions: tuple[int, ...] = (1, 2, 4, 8, 16)
    tokens: int = 64
    turns: int = 5


QUICK = Plan(tokens=16, turns=3)
SMALL = Plan(prompt=32, long_prompt=64, sessions=(1, 8), tokens=4, turns=3)


class Sessions:
    """Sessions of one engine that decode side by side, as a node's do."""

    def __init__(self, engine: SpanEngine, count: int, prompt: int) -> None:
        """Prompts of `prompt` tokens and a few less, so that no two are equally long."""
        self._engine = engine
        self._caches: list[KvCache] = [engine.new_cache(engine.span) for _ in range(count)]
        ids = [np.arange(1, 1 + prompt - n, dtype=np.int32) for n in range(count)]
        self._take(
            engine.run([Call(c, 0, from_numpy(i), BEST) for c, i in zip(self._caches, ids, strict=True)])
        )

    def _take(self, given: Sequence[object]) -> None:
        self._next = []
        for each in given:
            assert isinstance(each, Candidates), each
            self._next.append(from_numpy(each.ids[0]))

    def decode(self, tokens: int) -> None:
        """So many tokens each."""
        for _ in range(tokens):
            pairs = zip(self._caches, self._next, strict=True)
            self._take(self._engine.run([Call(cache, cache.length, ids, BEST) for cache, ids in pairs]))

    def close(self) -> None:
        """Give the memory back."""
        for cache in self._caches:
            cache.close()


def compare(name: str, folder: Path, device: str, plan: Plan) -> list[dict[str, Any]]:
    """One row for prefill and one for each number of sessions."""
    dtype = "f32" if device == "cpu" else "bf16"
    checkpoint = Checkpoint.open(str(folder))
    engine = SpanEngine.load(checkpoint, Span(0, checkpoint.stages), dtype=dtype, device=device)
    assert engine.batches
    model = (
        AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, _TORCH[dtype])).to(device).eval()
    )

    def generate(count: int, prompt: int, new: int) -> None:
        ids = torch.arange(1, 1 + prompt, device=device)[None].repeat(count, 1)
        mask = torch.ones_like(ids)
        out = model.generate(
            ids, attention_mask=mask, do_sample=False, min_new_tokens=new, max_new_tokens=new, pad_token_id=0
        )
        assert out.shape[1] == prompt + new
        out.cpu()  # waits for the device

    def row(what: str, units: int, ours: list[float], theirs: list[float]) -> dict[str, Any]:
        ratio = statistics.median(b / a for a, b in zip(ours, theirs, strict=True))
        engine_s, transformers_s = units / min(ours), units / min(theirs)
        return {
            "model": name,
            "what": what,
            "engine": engine_s,
            "transformers": transformers_s,
            "ratio": ratio,
        }

    def prefill() -> None:
        Sessions(engine, 1, plan.long_prompt).close()

    rows = []
    ours, theirs = [], []
    for _ in range(plan.turns + 1):
        ours.append(seconds(prefill))
        theirs.append(seconds(partial(generate, 1, plan.long_prompt, 1)))
    rows.append(row("prefill", plan.long_prompt, ours[1:], theirs[1:]))
    for count in plan.sessions:
        sessions = Sessions(engine, count, plan.prompt)
        sessions.decode(4)
        ours, theirs = [], []
        for _ in range(plan.turns):
            ours.append(seconds(partial(sessions.decode, plan.tokens)))
            first = seconds(partial(generate, count, plan.prompt, 1))
            theirs.append(seconds(partial(generate, count, plan.prompt, plan.tokens + 1)) - first)
        sessions.close()
        rows.append(row(f"decode, {count} sessions", count * plan.tokens, ours, theirs))
    return rows


_TORCH = {"f32": "float32", "bf16": "bfloat16"}


def summarise(rows: Sequence[dict[str, Any]], device: str) -> dict[str, float]:
    """The keys of the summary, by model where there are several."""
    summary = {}
    for name in dict.fromkeys(row["model"] for row in rows):
        speeds = {row["what"]: row for row in rows if row["model"] == name}
        one = speeds["decode, 1 sessions"]
        summary[f"ratio_decode_{name}"] = one["ratio"]
        summary[f"ratio_prefill_{name}"] = speeds["prefill"]["ratio"]
        for count in (8, 16) if device != "cpu" else (8,):
            key = f"aggregate_{count}_fp32" if device == "cpu" else f"aggregate_{count}_{name}"
            summary[key] = speeds[f"decode, {count} sessions"]["engine"] / one["engine"]
    return summary


def main() -> None:
    """Measure, print the table, write the JSON."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--device", default="cuda")
    options = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    if options.device != "cpu" and not torch.cuda.is_available():
        parser.error("there is no CUDA device here; --device cpu shows that it runs")
    small = options.device == "cpu"
    models = {"0.5B": replace(HALF_BILLION, layers=4) if small else HALF_BILLION}
    if not (small or options.quick):
        models["1B"] = BILLION
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for name, shape in models.items():
            shape.write(Path(folder, name), *(() if small else ("bfloat16", options.device)))
            plan = SMALL if small else QUICK if options.quick else Plan()
            rows += compare(name, Path(folder, name), options.device, plan)
    if not small:
        print(torch.cuda.get_device_name())
    report(summarise(rows, options.device), rows, options.json)


if __name__ == "__main__":
    main()
