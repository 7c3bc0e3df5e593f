"""A hop's stream to the next hop."""

from __future__ import annotations

import logging

import trio

from protocol import limits
from protocol.errors import PeerUnavailable, SwarmError
from protocol.messages import SESSION_PROTOCOL, Attach, Error, NextHop, Step
from protocol.session import Side, StreamState
from protocol.transport.base import Transport
from protocol.transport.channel import Channel

logger = logging.getLogger(__name__)


class Link:
    """Opened in the background by `run`; `send` waits until it is up, and is a no-op once it is down."""

    def __init__(self, target: NextHop) -> None:
        self.target = target
        self._channel: Channel | None = None
        self._settled = trio.Event()  # up or down
        self._scope = trio.CancelScope()
        self._reason: str | None = None

    async def run(self, transport: Transport) -> str | None:
        """Open the stream and watch it: why it is down, or None if it was abandoned."""
        try:
            with self._scope:
                await self._open_and_watch(transport)
        except SwarmError as error:
            self._reason = self._reason or str(error)
        except Exception:
            # Addresses come from a client; whatever dialling them does is its link's failure, nobody else's.
            logger.exception("the link to %s failed", self.target.peer)
            self._reason = "internal error"
        finally:
            self._channel = None
            self._settled.set()
        return self._reason

    async def send(self, step: Step) -> bool:
        """Send a step once the link is up; False if it is down."""
        if not self._settled.is_set():
            await self._settled.wait()
        channel = self._channel
        if channel is None:
            return False
        try:
            await channel.send(step)
        except PeerUnavailable as error:
            self._reason = self._reason or str(error)
            self._scope.cancel()
            return False
        return True

    def abandon(self) -> None:
        """Drop the stream; a `send` that waits gives up. Not reported as down."""
        self._channel = None
        self._settled.set()
        self._scope.cancel()

    async def _open_and_watch(self, transport: Transport) -> None:
        state = StreamState(Side.OPENER)
        with trio.move_on_after(limits.LINK_TIMEOUT_S) as opening:
            stream = await transport.open_stream(self.target.peer, self.target.addrs, SESSION_PROTOCOL)
        if opening.cancelled_caught:
            raise PeerUnavailable(f"no connection within {limits.LINK_TIMEOUT_S:g} s")
        async with Channel(stream, state=state, frame_limit=limits.CONTROL_FRAME_BYTES) as channel:
            with trio.move_on_after(limits.LINK_TIMEOUT_S) as attaching:
                await channel.send(Attach(self.target.session))
            if attaching.cancelled_caught:
                raise PeerUnavailable(f"not attached within {limits.LINK_TIMEOUT_S:g} s")
            self._channel = channel
            self._settled.set()
            answer = await channel.receive()  # a hop that is attached to says nothing but how it fails
            if isinstance(answer, Error):
                raise PeerUnavailable(f"{answer.code}: {answer.message}")
            raise PeerUnavailable("the next hop closed the stream")
