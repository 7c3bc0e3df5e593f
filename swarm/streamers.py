"""Feeds streamers as transformers has them (`TextStreamer`, `TextIteratorStreamer`, or what has their two verbs)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import aclosing
from typing import Final, Protocol

import numpy as np
import trio
from numpy.typing import NDArray

from swarm.answer import Answer
from swarm.decoding import Token
from swarm.generation import Generation

# Whoever takes no end within this gets none: the answer is over all the same.
END_S: Final = 5.0


class Streamer(Protocol):
    """What takes the ids of one answer as they come."""

    def put(self, value: NDArray[np.int64], /) -> object:
        """First the ids of the prompt [1, n], then each token [1]."""

    def end(self) -> object:
        """The answer is over."""


class Feeding:
    """What a streamer is to be given of one answer."""

    def __init__(self) -> None:
        self._begun = False

    def values(self, prompt: Sequence[int], tokens: Iterable[Token]) -> Iterator[NDArray[np.int64]]:
        """For the next tokens; before the first of all the prompt."""
        if not self._begun:
            self._begun = True
            yield np.asarray([prompt], np.int64)
        for token in tokens:
            yield np.asarray([token.id], np.int64)


async def feed(generation: Generation, streamer: Streamer) -> Answer:
    """Iterate an answer into a streamer, which is called in threads. Raises: what the generation raises.

    The streamer is told of the end however that comes, so that nobody waits for it in vain.
    """
    feeding = Feeding()
    try:
        async with aclosing(generation):
            async for piece in generation:
                for value in feeding.values(generation.prompt, piece.tokens):
                    await trio.to_thread.run_sync(streamer.put, value)
    finally:
        with trio.move_on_after(END_S, shield=True):
            await trio.to_thread.run_sync(streamer.end)
    return generation.answer
