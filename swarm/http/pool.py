"""Sessions that wait for what may go on from them: a chat sends its history again, and most of it is held already.

In the trio loop. What nodes keep by themselves saves the computing too; what is saved here beside that is to open a
session at every hop and to send the prompt along.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import trio

from swarm.decoding.runs import common_prefix
from swarm.http import limits
from swarm.session.session import Session


@dataclass(frozen=True, slots=True)
class Held:
    """What is known of an idle session: its tokens, and how many it may have."""

    tokens: Sequence[int]
    max_tokens: int


def choose(idle: Sequence[Held], prompt: Sequence[int], room: int) -> int | None:
    """Which of them to go on from: the one that has the most of `prompt`, with `room` for it and its answer.

    One that would lose more than it gives is left: it is the history of somebody else, who may go on from it.
    """
    best, most = None, limits.IDLE_TOKENS - 1
    for index, held in enumerate(idle):
        common = common_prefix(held.tokens, prompt)
        if common > most and held.max_tokens >= room and 2 * common >= len(held.tokens):
            best, most = index, common
    return best


class Pool:
    """Idle sessions, oldest first. `new` makes one of so many tokens."""

    def __init__(self, most: int = limits.IDLE_SESSIONS) -> None:
        self._most = most
        self._idle: list[tuple[float, Session]] = []  # since when
        self.taken = 0  # sessions that were gone on from

    @property
    def size(self) -> int:
        """Sessions that wait."""
        return len(self._idle)

    def take(self, prompt: Sequence[int], room: int, new: Callable[[int], Session]) -> Session:
        """A session for this prompt, which is the caller's until it is left here again, or closed."""
        held = [Held(session.tokens, session.spec.max_tokens) for _, session in self._idle]
        chosen = choose(held, prompt, room)
        if chosen is None:
            return new(room)
        self.taken += 1
        return self._idle.pop(chosen)[1]

    async def leave(self, session: Session) -> None:
        """It waits from now on; where too many do, the one that has waited longest is closed."""
        self._idle.append((trio.current_time(), session))
        while len(self._idle) > self._most:
            await self._idle.pop(0)[1].aclose()

    async def run(self) -> None:
        """Close those that wait for too long; all, at the end."""
        try:
            while True:
                await trio.sleep(limits.IDLE_S / 8)
                while self._idle and self._idle[0][0] + limits.IDLE_S < trio.current_time():
                    await self._idle.pop(0)[1].aclose()
        finally:
            with trio.CancelScope(shield=True):  # bounded by the sessions themselves
                async with trio.open_nursery() as nursery:
                    for _, session in self._idle:
                        nursery.start_soon(session.aclose)
                self._idle.clear()
