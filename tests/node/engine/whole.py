"""What engines are held against: transformers' own model, unsplit; and a chain of engines that should equal it."""

from __future__ import annotations

import inspect
import itertools
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import DynamicCache, PreTrainedModel

from node.compute.call import run_alone
from node.engine.checkpoint import Checkpoint
from node.engine.ends import LocalEnds
from node.engine.span import SpanEngine
from protocol.candidates import HIDDEN, Candidates, Want
from protocol.model import Span
from protocol.tensors import Tensor, from_numpy

Array = NDArray[Any]
ALL_LOGITS = Want(every=True, top=0)
# Their own code takes several rows for the beginning of a sequence; later ones it has to be given one by one.
BY_ROW = ("jamba", "mamba")
PROMPT = np.array([11, 200, 3, 77, 77, 145, 90, 8, 31, 222, 64, 5], dtype=np.int32)


class Whole:
    """The unsplit model."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        # An end that is asked for too early would be replaced by the next best.
        model.generation_config.eos_token_id = None
        takes = inspect.signature(model.forward).parameters
        self._cache_name = "past_key_values" if "past_key_values" in takes else "cache_params"
        self._takes_positions = "position_ids" in takes

    def logits(self, chunks: list[Array]) -> list[Array]:
        """Logits [tokens, vocabulary] of every chunk, each fed after the ones before it."""
        if self.model.config.model_type in BY_ROW and len(chunks) > 1:
            first, *later = chunks
            rows = iter(
                self._logits([first, *(row for chunk in later for row in np.split(chunk, len(chunk)))])
            )
            return [next(rows), *(np.concatenate([next(rows) for _ in chunk]) for chunk in later)]
        return self._logits(chunks)

    def _logits(self, chunks: list[Array]) -> list[Array]:
        given: dict[str, Any] = {self._cache_name: DynamicCache(config=self.model.config), "use_cache": True}
        found: list[Array] = []
        position = 0
        with torch.inference_mode():
            for chunk in chunks:
                if self._takes_positions:  # as `generate` does; left out, some families count from 0 again
                    given["position_ids"] = torch.arange(position, position + len(chunk))[None]
                out = self.model(input_ids=torch.from_numpy(chunk.astype(np.int64))[None], **given)
                found.append(out.logits[0].numpy())
                position += len(chunk)
        return found

    def greedy(self, prompt: Array, tokens: int) -> list[int]:
        """What `generate` continues the prompt with."""
        ids = torch.from_numpy(prompt.astype(np.int64))[None]
        mask = torch.ones_like(ids)
        generate: Any = self.model.generate
        out = generate(ids, attention_mask=mask, do_sample=False, max_new_tokens=tokens)
        found: list[int] = out[0, len(prompt) :].tolist()
        return found


class Chain:
    """Engines and caches that together are a model."""

    def __init__(
        self, checkpoint: Checkpoint, cuts: list[int], *, dtype: str = "f32", ends: bool = False
    ) -> None:
        """Spans between neighbouring cuts; with `ends` the first and the last stage are LocalEnds."""
        self.ends = LocalEnds.load(checkpoint, dtype=dtype) if ends else None
        spans = [Span(a, b) for a, b in itertools.pairwise(cuts)]
        self.engines = [SpanEngine.load(checkpoint, span, dtype=dtype) for span in spans]
        self.caches = [engine.new_cache(engine.span) for engine in self.engines]
        self.position = 0

    def step(self, tokens: Array, want: Want = ALL_LOGITS, position: int | None = None) -> Candidates:
        """Push tokens through, at the end unless a position is given."""
        at = self.position if position is None else position
        given: Any = from_numpy(tokens)
        if self.ends:
            given = self.ends.embed(given, at)
        for engine, cache in zip(self.engines, self.caches, strict=True):
            given = run_alone(engine, cache, at, given, HIDDEN if self.ends else want)
        if self.ends:
            given = self.ends.head(given, want, at)
        self.position = at + len(tokens)
        assert isinstance(given, Candidates)
        return given

    def logits(self, chunks: list[Array]) -> list[Array]:
        """As `Whole.logits`."""
        return [logits_of(self.step(chunk)) for chunk in chunks]

    def greedy(self, prompt: Array, tokens: int) -> list[int]:
        """As `Whole.greedy`."""
        found: list[int] = []
        given = prompt
        while len(found) < tokens:
            out = self.step(given, Want(top=1))
            found.append(int(out.ids[0, 0]))
            given = out.ids[0]
        return found


def logits_of(found: Candidates) -> Array:
    """Logits [rows, vocabulary] in the order of ids, from candidates that hold the whole vocabulary."""
    logits = np.empty_like(found.logits)
    np.put_along_axis(logits, found.ids.astype(np.int64), found.logits, 1)
    return logits


def states(tokens: int, hidden_size: int, seed: int = 0) -> Tensor:
    """Random fp32 hidden states."""
    return from_numpy(np.random.default_rng(seed).standard_normal((tokens, hidden_size), dtype=np.float32))


def chunked(tokens: Array, *sizes: int) -> list[Array]:
    """The tokens in chunks of these sizes."""
    assert sum(sizes) == len(tokens)
    return np.split(tokens, np.cumsum(sizes)[:-1])
