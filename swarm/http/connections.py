"""A connection of uvicorn's that gives nobody more time or more places than there are.

uvicorn bounds the size of a request's head, not how long it may take, nor how long a reader may take nothing, and
lets connections come without end.
"""

from __future__ import annotations

import asyncio
from typing import Final

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from swarm.http import limits

_TOO_LARGE: Final = 431


class Connection(H11Protocol):
    """One client's connection, while it keeps to the limits."""

    _patience: asyncio.TimerHandle | None = None  # ends with the head of a request
    _stall: asyncio.TimerHandle | None = None  # ends when the reader takes something

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """See `asyncio.Protocol`; where there are too many, the one that has been idle longest gives way."""
        super().connection_made(transport)
        self.since = self.loop.time()
        if len(self.connections) > limits.CONNECTIONS:
            idle = [each for each in self.connections if isinstance(each, Connection) and each.may_give_way]
            min(idle, key=lambda each: each.since, default=self).transport.abort()
        self._await_head()

    @property
    def may_give_way(self) -> bool:
        """Whether no request is being answered, and nobody has ended it yet."""
        if self.transport.is_closing():
            return False
        return self.cycle is None or self.cycle.response_complete  # type: ignore[redundant-expr]  # not at first

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        self._cancel_timers()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            if self._patience is not None:
                self._patience.cancel()
                self._patience = None
        elif self._patience is None:
            self._await_head()

    def pause_writing(self) -> None:
        """See `asyncio.Protocol`: the reader has not taken what was sent."""
        super().pause_writing()
        self._stall = self.loop.call_later(limits.STALLED_S, self.transport.abort)

    def resume_writing(self) -> None:
        """See `asyncio.Protocol`."""
        super().resume_writing()
        if self._stall is not None:
            self._stall.cancel()
            self._stall = None

    def send_400_response(self, msg: str) -> None:
        """Say what is wrong with the bytes, and close."""
        large = len(self.conn.trailing_data[0]) >= limits.HEAD_BYTES
        status = _TOO_LARGE if large else 400
        said = (
            f"the head of a request has at most {limits.HEAD_BYTES} bytes"
            if large
            else "this is no HTTP request"
        )
        body = said.encode()
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            headers = [
                ("content-type", "text/plain"),
                ("content-length", str(len(body))),
                ("connection", "close"),
            ]
            for event in (
                h11.Response(status_code=status, headers=headers),
                h11.Data(data=body),
                h11.EndOfMessage(),
            ):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def _await_head(self) -> None:
        self._patience = self.loop.call_later(limits.HEAD_S, self._give_up_head)

    def _give_up_head(self) -> None:
        self._patience = None
        if not self.transport.is_closing():
            self.transport.abort()

    def _cancel_timers(self) -> None:
        for timer in (self._patience, self._stall):
            if timer is not None:
                timer.cancel()
        self._patience = self._stall = None
