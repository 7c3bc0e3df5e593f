"""A step that is under way."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio

from protocol.candidates import Candidates, Want


class Flight:
    """Made by `Session.send_step`. `numbers` are those of its chunks, while they are the ones that count."""

    def __init__(
        self,
        land: Callable[[Flight], Awaitable[Candidates | None]],
        tokens: tuple[int, ...],
        position: int,
        want: Want,
    ) -> None:
        self.tokens = tokens
        self.position = position
        self.want = want
        self.numbers = range(0)
        self.sent_at = self.landed_at = trio.current_time()  # the latter: when what it wanted came
        self._land = land

    @property
    def seconds(self) -> float:
        """How long it was under way, also if nobody waited for it at its end."""
        return self.landed_at - self.sent_at

    async def found(self) -> Candidates | None:
        """What comes of it, as of `Session.step`.

        Raises: what that raises; LocalProtocolError, before an earlier one, or once it was gone back over.
        """
        return await self._land(self)
