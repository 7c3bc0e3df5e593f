"""Which models are served, and how: every family that the tests know is made up small, run, and held against
transformers.

    python scripts/models.py [--write FILE | --check FILE] [--only NAME ...]

Each model has random weights. Four sessions with prompts of different lengths, taken in chunks, decode 32 tokens
each, greedily and in fp32, side by side in one batch where the engine makes one; the tokens are those of
transformers' `generate` for each prompt by itself, or the table says how many are. The engine is the one that a node
takes. In eight and four bits the same prompts are run as well; what that costs in quality random weights cannot say.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
# Before torch is imported anywhere: OpenMP threads that spin while they wait starve the other processes.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM
from transformers.utils import logging

from node.compute.call import run_alone
from node.compute.interfaces import Call, Engine
from node.engine.backend import TorchBackend
from node.native.backend import NativeBackend
from node.native.checkpoint import NativeCheckpoint
from node.native.engine import NativeEngine
from node.native.load import load_kernel
from node.native.precision import F32
from protocol.candidates import NOTHING, Candidates, Want
from protocol.errors import UnsupportedModel
from protocol.model import Span
from protocol.tensors import from_numpy
from tests.node.engine.variants import EXACT, REFUSED
from tests.node.engine.whole import Whole
from tests.support.models import FAMILIES, make_model

NAMES: Final = (*FAMILIES, *EXACT)
WHOLE: Final = Span(0, 6)
LENGTHS: Final = (3, 9, 14, 24)
CHUNK: Final = 5
STEPS: Final = 32
SEED: Final = 3

Ids = NDArray[np.int32]


@dataclass(frozen=True)
class Found:
    """What was found out about one model."""

    path: str  # "native" or "torch"
    batched: bool
    quantised: bool
    equal: int  # of `total` tokens
    total: int


def prompts() -> list[Ids]:
    """Made-up prompts of different lengths."""
    rng = np.random.default_rng(SEED)
    return [rng.integers(0, 256, length).astype(np.int32) for length in LENGTHS]


def greedy(engine: Engine, given: Sequence[Ids], steps: int) -> list[list[int]]:
    """What sessions continue their prompts with: prompts in chunks, then steps of all sessions at once."""
    caches = [engine.new_cache(engine.span) for _ in given]
    last = []
    for cache, prompt in zip(caches, given, strict=True):
        for start in range(0, len(prompt) - 1, CHUNK):
            chunk = prompt[start : min(start + CHUNK, len(prompt) - 1)]
            run_alone(engine, cache, start, from_numpy(chunk), NOTHING)
        last.append(prompt[-1:])
    found: list[list[int]] = [[] for _ in given]
    for _ in range(steps):
        calls = [Call(c, c.length, from_numpy(ids), Want(top=1)) for c, ids in zip(caches, last, strict=True)]
        for place, answer in enumerate(engine.run(calls)):
            assert isinstance(answer, Candidates), answer
            last[place] = answer.ids[0]
            found[place].append(int(answer.ids[0, 0]))
    return found


def look(name: str, steps: int = STEPS) -> Found:
    """Make a model up and run it. Raises: UnsupportedModel."""
    family, _, _ = name.partition("/")
    with tempfile.TemporaryDirectory() as home:
        folder = make_model(family, Path(home, "model"), seed=SEED, sharded=True, **EXACT.get(name, {}))
        whole = Whole(AutoModelForCausalLM.from_pretrained(folder).eval())
        expected = [whole.greedy(prompt, steps) for prompt in prompts()]
        path, engine = _engine(folder)
        found = greedy(engine, prompts(), steps)
        for quant in ("int8", "int4"):
            greedy(_quantised(folder, quant), prompts(), 2)
        pairs = [
            pair
            for ours, theirs in zip(found, expected, strict=True)
            for pair in zip(ours, theirs, strict=True)
        ]
    batched = path == "native" or bool(getattr(engine, "batches", False))
    return Found(path, batched, True, sum(a == b for a, b in pairs), len(pairs))


def _engine(folder: Path) -> tuple[str, Engine]:
    """The engine that a node takes for a model, in fp32."""
    try:
        checkpoint = NativeCheckpoint.open(str(folder), F32)
    except UnsupportedModel:
        backend = TorchBackend.open(str(folder), cache_dir=None, dtype="f32", device="cpu")
        return "torch", backend.load(WHOLE)
    return "native", NativeEngine.load(checkpoint, WHOLE, load_kernel(1))


def _quantised(folder: Path, quant: str) -> Engine:
    try:
        return NativeBackend.open(str(folder), quant, threads=1).load(WHOLE)
    except UnsupportedModel:
        backend = TorchBackend.open(
            str(folder), cache_dir=None, dtype=None, device="cpu", quant=quant, threads=1
        )
        return backend.load(WHOLE)


def row(name: str, found: Found) -> str:
    """A line of the table."""
    equal = "all" if found.equal == found.total else f"{found.equal} of {found.total}"
    cells = (name, found.path, _yes(found.batched), _yes(found.quantised), equal)
    return f"| {' | '.join(cells)} |"


def _yes(it: bool) -> str:
    return "yes" if it else "no"


def refusal(name: str) -> str:
    """A line of the table of what is refused: why, in the engine's words."""
    changes, _ = REFUSED[name]
    with tempfile.TemporaryDirectory() as home:
        folder = make_model(name.partition("/")[0], Path(home, "model"), seed=SEED, **changes)
        try:
            TorchBackend.open(str(folder), cache_dir=None, dtype="f32", device="cpu").load(WHOLE)
        except UnsupportedModel as error:
            return f"| {name} | {error} |"
    raise AssertionError(f"{name} is not refused any more")


def page(names: Sequence[str]) -> str:
    """docs/models.md, of these models. Tells on standard error how far it is."""
    lines, counts = [], dict.fromkeys(("native", "batched", "equal"), 0)
    for name in sorted(names):
        sys.stderr.write(f"{name}\n")
        found = look(name)
        counts["native"] += found.path == "native"
        counts["batched"] += found.batched
        counts["equal"] += found.equal == found.total
        lines.append(row(name, found))
    refused = [refusal(name) for name in sorted(REFUSED)]
    total = len(lines)
    return PAGE.format(
        total=total,
        **counts,
        table="\n".join(lines),
        refused="\n".join(refused),
    )


PAGE: Final = """\
# Models

Written by `python scripts/models.py --write docs/models.md`, which makes each of these models up, small and with
random weights, and runs it. A name is transformers' model type, and after a stroke what is special about it.

- **path**: `native` is the kernels of `node/native` (see `numerics.md`), which know a model completely or not at all;
  `torch` is the family's own modules. A node chooses by config.json, and says in its banner which it is. {native} of
  {total} models here go the native way.
- **batched**: whether decode steps of several sessions are computed together. {batched} are; of the others each has
  its turn.
- **int8, int4**: whether it runs in fewer bits (`--quant`): in the kernels, or with its linear layers and experts
  packed.
- **tokens equal**: of four sessions with prompts of 3 to 24 tokens, taken in chunks of 5, which then decode 32 tokens
  each, side by side, in fp32: whether these are the tokens of transformers' `generate` for each prompt alone. Of
  {equal} they are.

| model | path | batched | int8, int4 | tokens equal |
|---|---|---|---|---|
{table}

## What is refused

Before anything is served, and in one line.

| model | why |
|---|---|
{refused}

Also refused: models whose code comes with the checkpoint, and some ways to quantise one: see `formats.md`.
"""


def main() -> int:
    """Print the page, write it, or hold a file against it."""
    parser = argparse.ArgumentParser(description="Which models are served, and how.")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--write", type=Path, metavar="FILE")
    where.add_argument("--check", type=Path, metavar="FILE", help="1 if the file says something else")
    parser.add_argument("--only", nargs="+", choices=NAMES, metavar="NAME", help="lines of these, no page")
    options = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(1)
    if options.only:
        for name in options.only:
            print(row(name, look(name)), flush=True)
        return 0
    text = page(NAMES)
    if options.write:
        options.write.write_text(text)
    elif options.check:
        return int(options.check.read_text() != text)
    else:
        print(text, end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
