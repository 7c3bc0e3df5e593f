"""A whole model on this machine, asked as a swarm is: sequences with caches of their own, a step at a time.

What a client needs beside its swarm: a model that drafts, or an amateur. Computed in threads, one after the other.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import TypeVar

import numpy as np
import trio

from node.backend import open_backend
from node.compute.call import run_alone
from node.compute.interfaces import Engine, KvCache
from node.config import NodeConfig
from protocol.candidates import NOTHING, Candidates, Want
from protocol.errors import ConfigError
from protocol.model import Span
from protocol.tensors import from_numpy

T = TypeVar("T")


class WholeModel:
    """Fits what `swarm.branches` calls a model."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._turn = trio.CapacityLimiter(1)

    @classmethod
    def open(cls, model: str, quant: str | None = None) -> WholeModel:
        """A checkpoint's folder, a GGUF file or a model of the hub, loaded. Blocks.

        Raises: ConfigError, BadCheckpoint, UnsupportedModel.
        """
        backend = open_backend(NodeConfig(model, quant=quant))
        return cls(backend.load(Span(0, backend.model.manifest.stages)))

    @property
    def tokenizer(self) -> bytes:
        """The digest of its tokenizer: ids mean the same only where this is the same."""
        return self._engine.manifest.tokenizer

    @property
    def vocab_size(self) -> int:
        """Logits of one row."""
        return self._engine.manifest.vocab_size

    @asynccontextmanager
    async def session(self, *, max_tokens: int) -> AsyncIterator[WholeSequence]:
        """A sequence, as long as this is entered. Raises: ConfigError, if the model's context is shorter."""
        context = self._engine.manifest.context
        if max_tokens > context:
            raise ConfigError(
                f"{max_tokens} tokens are more than the context of {context} of the model beside"
            )
        cache = await self.in_turn(partial(self._engine.new_cache, self._engine.span, max_tokens))
        sequence = WholeSequence(self, self._engine, cache)
        try:
            yield sequence
        finally:
            sequence.leave()

    async def in_turn(self, work: Callable[[], T]) -> T:
        """Run blocking work in a thread, after what others asked for."""
        # The type stubs that libp2p brings are of an older trio.
        return await trio.to_thread.run_sync(work, limiter=self._turn)


class WholeSequence:
    """Fits what `swarm.branches` calls a source. One step at a time."""

    def __init__(self, model: WholeModel, engine: Engine, cache: KvCache) -> None:
        self._model = model
        self._engine = engine
        self._cache = cache
        self._tokens: list[int] = []  # where it cannot go back

    @property
    def events(self) -> tuple[()]:
        """What happened to it: nothing does."""
        return ()

    async def step(self, tokens: Sequence[int], *, position: int, want: Want) -> Candidates | None:
        """Run tokens at `position`, and forget what stood there. Raises: what the engine has in their place."""
        if not self._engine.goes_back:
            again = self._tokens[:position] if position < self._cache.length else []
            self._tokens[position:] = tokens
            if again:
                await self._run(again, 0, NOTHING)
        return await self._run(tokens, position, want)

    async def _run(self, tokens: Sequence[int], position: int, want: Want) -> Candidates | None:
        inputs = from_numpy(np.asarray(tokens, np.int32))
        found = await self._model.in_turn(
            partial(run_alone, self._engine, self._cache, position, inputs, want)
        )
        assert found is None or isinstance(found, Candidates)
        return found

    async def fork(self, position: int) -> WholeSequence:
        """Another one that begins with the first `position` tokens."""
        cache = await self._model.in_turn(partial(self._cache.fork, position))
        return WholeSequence(self._model, self._engine, cache)

    async def aclose(self) -> None:
        """It is used no more."""
        self.leave()

    def leave(self) -> None:
        """The same, at once."""
        self._cache.close()
