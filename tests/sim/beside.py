"""What a client has beside the swarm, computed in the event loop: for virtual time."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from io import BytesIO
from typing import Any

from protocol.candidates import Candidates, Want
from swarm.client import Client
from swarm.text.process import TextProcess
from swarm.text.worker import _Worker
from tests.sim.test_answers import client_in
from tests.sim.world import World
from tests.swarm.decoding.reference import Logits, answer_rows


class InlineTexts(TextProcess):
    """What the text process does, without one; `run` starts nothing."""

    async def run(self) -> None:
        """See `TextProcess`."""

    async def load(self, files: Mapping[str, bytes]) -> dict[str, Any]:
        """See `TextProcess`."""
        self._inline = _Worker(BytesIO(b"".join(files.values())))
        return await self.ask({"do": "load", "files": [(name, len(data)) for name, data in files.items()]})

    async def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """See `TextProcess`."""
        return self._inline.answer(request)


def inline_client(
    world: World, wait_s: float = 0.0, *, direct: bool = True
) -> AbstractAsyncContextManager[Client]:
    """The world's client, with a tokenizer that is no process."""
    return client_in(world, wait_s, direct=direct, texts=InlineTexts())


class Beside:
    """A model whose logits are those of a function of the tokens so far. Fits what `swarm.branches` calls one."""

    def __init__(
        self, logits_of: Callable[[Sequence[int]], Logits], vocab_size: int, tokenizer: bytes
    ) -> None:
        self.tokenizer = tokenizer
        self.vocab_size = vocab_size
        self.logits_of = logits_of

    @asynccontextmanager
    async def session(self, *, max_tokens: int) -> AsyncIterator[BesideSequence]:
        """See `swarm.branches.Model`."""
        yield BesideSequence(self.logits_of, [])


class BesideSequence:
    """A sequence of it."""

    events = ()

    def __init__(self, logits_of: Callable[[Sequence[int]], Logits], tokens: list[int]) -> None:
        self._logits_of = logits_of
        self._tokens = tokens

    async def step(self, tokens: Sequence[int], *, position: int, want: Want) -> Candidates:
        """See `swarm.branches.Source`."""
        assert 0 <= position <= len(self._tokens)
        self._tokens[position:] = tokens
        return answer_rows(self._logits_of, self._tokens, position, want)

    async def fork(self, position: int) -> BesideSequence:
        """See `swarm.branches.Source`."""
        return BesideSequence(self._logits_of, self._tokens[:position])

    async def aclose(self) -> None:
        """See `swarm.branches.Source`."""

    def leave(self) -> None:
        """See `swarm.branches.Source`."""
