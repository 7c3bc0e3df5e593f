"""Places for conversations with strangers: nobody who comes is turned away, who takes long gives way."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import trio

from protocol.errors import Busy
from protocol.transport.base import Stream
from protocol.transport.crowd import Crowd

# Bytes handed to a stream at once. Each such piece that it takes is progress.
PIECE_BYTES = 64 * 1024


class Stranger(Protocol):
    """Whom a place is for: a stream, or a connection."""

    @property
    def peer(self) -> str:
        """Its verified id."""

    @property
    def origin(self) -> str:
        """The block of addresses that its packets come from."""


class Slots:
    """So many conversations at once. When one more comes, one ends: the longest without progress.

    Of the origin that has the most slots, of its peer that has the most.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._crowd: Crowd[Slot] = Crowd()

    def __len__(self) -> int:
        return len(self._crowd)

    @contextmanager
    def taken(self, stranger: Stranger) -> Iterator[Slot]:
        """A slot for `stranger` while the block runs.

        Raises: Busy, when it had to give way.
        """
        slot = Slot(self._crowd)
        self._crowd.enter(slot, stranger.origin, stranger.peer)
        if len(self._crowd) > self._most:
            self._crowd.give_way().scope.cancel()
        try:
            with slot.scope:
                yield slot
        finally:
            self._crowd.leave(slot)
        if slot.scope.cancelled_caught:
            raise Busy(f"others wait for the slot of {stranger.peer}")


class Slot:
    """One conversation's place among others."""

    def __init__(self, crowd: Crowd[Slot]) -> None:
        self.scope = trio.CancelScope()
        self._crowd = crowd

    def progress(self) -> None:
        """The peer has done its part just now."""
        self._crowd.touch(self)

    async def send(self, stream: Stream, data: bytes | memoryview, within_s: float) -> None:
        """Send `data` piece by piece, each progress once it is taken.

        Raises: Busy, if that takes longer than `within_s`; Lost.
        """
        view = memoryview(data)
        try:
            with trio.fail_after(within_s):
                for start in range(0, len(view), PIECE_BYTES):
                    await stream.send(view[start : start + PIECE_BYTES])
                    self.progress()
        except trio.TooSlowError:
            raise Busy(f"{stream.peer} does not read what it asked for") from None
