"""The engine on a graphics card against transformers' generate there, turn by turn, in bf16.

    python scripts/bench/gpu.py [--quick] [--models 0.5B 1B 8B] [--quant int8|int4] [--json FILE]
    python scripts/bench/gpu.py --device cpu [--quant int8|int4] [--json FILE]

Tokens per second of greedy decoding by 1 to 16 sessions at once, and of a long prompt; random weights. transformers
decodes a batch of as many prompts of one length; ours are sessions, each with a length and a cache of its own. The
ratio is the median over the turns, in which both take theirs one after the other; the speeds are those of the best
turns. `aggregate_16` is what sixteen sessions get together by what one gets. With --quant the modules of ours are
packed, `generate` stays as it is. With `--device cpu` a sixth of a model runs in fp32, which shows that all works,
and the summary has `aggregate_8_fp32`; packed, that is how families compute that the kernels do not know.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import HALF_BILLION, Shape, arguments, report, seconds  # sets the environment that OpenMP reads
from transformers import AutoModelForCausalLM
from transformers.utils import logging

from node.compute.interfaces import Call, KvCache
from node.engine.backend import TorchBackend
from node.engine.span import SpanEngine
from protocol.candidates import Candidates, Want
from protocol.model import Span
from protocol.tensors import from_numpy

BILLION = Shape(layers=16, hidden=2048, heads=32, kv_heads=8, intermediate=8192, vocabulary=32_000)
EIGHT_BILLION = Shape(layers=32, hidden=4096, heads=32, kv_heads=8, intermediate=14_336, vocabulary=32_000)
BEST = Want(top=1)


@dataclass(frozen=True)
class Plan:
    """How much is measured, in tokens, sessions and turns."""

    prompt: int = 128
    long_prompt: int = 1024
    sessions: tuple[int, ...] = (1, 2, 4, 8, 16)
    tokens: int = 64
    turns: int = 5


QUICK = Plan(sessions=(1, 4, 16), tokens=16, turns=3)
SMALL = Plan(prompt=32, long_prompt=64, sessions=(1, 8), tokens=8, turns=3)


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


class Bench:
    """One model in both engines on a device; rows are printed on standard error as they come."""

    def __init__(self, name: str, folder: Path, device: str, plan: Plan, quant: str | None) -> None:
        self._name, self._device, self._plan = name, device, plan
        dtype = "f32" if device == "cpu" else "bf16"
        backend = TorchBackend.open(str(folder), cache_dir=None, dtype=dtype, device=device, quant=quant)
        span = Span(0, backend.model.stages)
        self.engine = backend.load(span)
        self._launched: SpanEngine | None = None
        if self.engine.records and quant is None:
            self._launched = SpanEngine.load(backend.model, span, dtype=dtype, device=device, recorded=False)
        size = self.engine.weight_bytes / 2**20
        say(f"{name}: {size:.0f} MiB, batches: {self.engine.batches}, records: {self.engine.records}")
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, _TORCH[dtype]))
        self._model = model.to(device).eval()

    def rows(self) -> Iterator[dict[str, Any]]:
        """One for prefill, and for each number of sessions; some with every step launched anew."""
        plan = self._plan
        yield self._row(
            "prefill",
            plan.long_prompt,
            lambda: Sessions(self.engine, 1, plan.long_prompt).close(),
            lambda: self._generate(1, plan.long_prompt, 1),
        )
        for count in plan.sessions:
            yield self._decode(self.engine, f"decode, {count} sessions", count)
        if self._launched is not None:
            for count in (plan.sessions[0], plan.sessions[-1]):
                yield self._decode(self._launched, f"decode, {count} sessions, launched", count)

    def _decode(self, engine: SpanEngine, what: str, count: int) -> dict[str, Any]:
        plan = self._plan
        sessions = Sessions(engine, count, plan.prompt)
        row = self._row(
            what,
            count * plan.tokens,
            lambda: sessions.decode(plan.tokens),
            lambda: self._generate(count, plan.prompt, plan.tokens + 1),
            lambda: self._generate(count, plan.prompt, 1),
        )
        sessions.close()
        return row

    def _row(
        self,
        what: str,
        units: int,
        ours: Callable[[], None],
        theirs: Callable[[], None],
        beside: Callable[[], None] = lambda: None,
    ) -> dict[str, Any]:
        """Turn by turn, after one that does not count; `beside` is what `theirs` does besides."""
        ours()
        theirs()
        pairs = [(seconds(ours), seconds(theirs) - seconds(beside)) for _ in range(self._plan.turns)]
        row = {
            "model": self._name,
            "what": what,
            "engine": units / min(one for one, _ in pairs),
            "transformers": units / min(other for _, other in pairs),
            "ratio": statistics.median(other / one for one, other in pairs),
        }
        say(" ".join(str(value) for value in row.values()))
        return row

    def _generate(self, count: int, prompt: int, new: int) -> None:
        ids = torch.arange(1, 1 + prompt, device=self._device)[None].repeat(count, 1)
        out = self._model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=new,
            pad_token_id=0,
        )
        assert out.shape[1] == prompt + new
        out.cpu()  # waits for the device


def say(line: str) -> None:
    """How far it is, and what it has: a run that is cut short has said something."""
    sys.stderr.write(f"{time.perf_counter() - BEGAN:6.1f} s  {line}\n")


BEGAN = time.perf_counter()
_TORCH = {"f32": "float32", "bf16": "bfloat16"}


def summarise(rows: Sequence[dict[str, Any]], device: str) -> dict[str, float]:
    """The keys of the summary, by model where there are several."""
    summary = {}
    for name in dict.fromkeys(row["model"] for row in rows):
        speeds = {row["what"]: row for row in rows if row["model"] == name}
        one = speeds["decode, 1 sessions"]
        summary[f"ratio_decode_{name}"] = one["ratio"]
        summary[f"ratio_prefill_{name}"] = speeds["prefill"]["ratio"]
        for count in (8, 16):
            key = f"aggregate_{count}_fp32" if device == "cpu" else f"aggregate_{count}_{name}"
            if many := speeds.get(f"decode, {count} sessions"):
                summary[key] = many["engine"] / one["engine"]
        if launched := speeds.get("decode, 1 sessions, launched"):
            summary[f"recorded_{name}"] = one["engine"] / launched["engine"]
    return summary


def main() -> None:
    """Measure, print the table, write the JSON."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quant", choices=("int8", "int4"), help="what ours packs the weights in")
    parser.add_argument("--models", nargs="+", choices=("0.5B", "1B", "8B"), default=("0.5B", "1B"))
    options = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    if options.device != "cpu" and not torch.cuda.is_available():
        parser.error("there is no CUDA device here; --device cpu shows that it runs")
    small = options.device == "cpu"
    shapes = {"0.5B": HALF_BILLION, "1B": BILLION, "8B": EIGHT_BILLION}
    models = {name: shapes[name] for name in options.models}
    if small:
        models = {"0.5B": replace(HALF_BILLION, layers=4)}
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for name, shape in models.items():
            shape.write(Path(folder, name), *(() if small else ("bfloat16", options.device)))
            plan = SMALL if small else QUICK if options.quick else Plan()
            rows += Bench(name, Path(folder, name), options.device, plan, options.quant).rows()
    if not small:
        say(torch.cuda.get_device_name())
    report(summarise(rows, options.device), rows, options.json)


if __name__ == "__main__":
    main()
