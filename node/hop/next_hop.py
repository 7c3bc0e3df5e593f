"""A hop's stream to the next hop."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

import trio

from protocol import limits
from protocol.errors import LocalProtocolError, Malformed, PeerUnavailable, SwarmError
from protocol.messages import Attach, Error, Instead, Known, NextHop, Step, Unknown
from protocol.session import Side, StreamState
from protocol.talk.channel import Channel
from protocol.transport.base import Stream

logger = logging.getLogger(__name__)

OpenStream = Callable[[str], Awaitable[Stream]]
OnUnknown = Callable[["Link", int], None]


class Link:
    """Opened in the background by `run`; `send` waits until it is up, and is a no-op once it is down.

    `stage`: where what it carries enters, the end of our span. `on_unknown` is told, once at most, of the first step
    whose rows the next hop does not know by name; from then on it is to be sent all.
    """

    def __init__(self, target: NextHop, stage: int, on_unknown: OnUnknown) -> None:
        self.target = target
        self.names_rows = True  # whether the next hop has known all that was named
        self._stage = stage
        self._on_unknown = on_unknown
        self._named: set[int] = set()  # numbers of steps
        self._channel: Channel | None = None
        self._settled = trio.Event()  # up or down
        self._scope = trio.CancelScope()
        self._reason: str | None = None

    async def run(self, open_stream: OpenStream) -> str | None:
        """Open the stream and watch it: why it is down, for our log; None if it was abandoned."""
        try:
            with self._scope:
                await self._open_and_watch(open_stream)
        except SwarmError as error:
            self._reason = self._reason or str(error)
        except Exception:
            # The peer comes from a client; whatever opening a stream to it does is its link's failure, nobody else's.
            logger.exception("the link to %s failed", self.target.peer)
            self._reason = "internal error"
        finally:
            self._channel = None
            self._settled.set()
        return self._reason

    async def send(self, message: Step | Known | Instead) -> bool:
        """Send a message once the link is up; False if it is down."""
        if not self._settled.is_set():
            await self._settled.wait()
        channel = self._channel
        if channel is None:
            return False
        with trio.move_on_after(limits.TAKE_WITHIN_S) as taking:
            try:
                self._note_named(message)
                await channel.send(message)
            except PeerUnavailable as error:
                self._break(str(error))
                return False
            except LocalProtocolError:
                if self._channel is channel:  # else the next hop ended it while this waited its turn
                    raise
                return False
        if taking.cancelled_caught:
            self._break(f"the next hop took nothing for {limits.TAKE_WITHIN_S:g} s")
            return False
        return True

    def send_now(self, message: Step | Known) -> bool:
        """As `send`, before any other task runs; False, and nothing is sent, where it has to wait."""
        channel = self._channel
        if channel is None:
            return self._settled.is_set()  # it is down
        if not channel.send_now(message):
            return False
        self._note_named(message)
        return True

    def abandon(self) -> None:
        """Drop the stream; a `send` that waits gives up. Not reported as down."""
        self._channel = None
        self._settled.set()
        self._scope.cancel()

    def _note_named(self, message: Step | Known | Instead) -> None:
        if isinstance(message, Known):
            self._named.add(message.number)

    def _break(self, reason: str) -> None:
        self._reason = self._reason or reason
        self._scope.cancel()

    async def _open_and_watch(self, open_stream: OpenStream) -> None:
        stream = await open_stream(self.target.peer)
        state = StreamState(Side.OPENER)
        async with Channel(stream, state=state, frame_limit=limits.FIRST_FRAME_BYTES) as channel:
            with trio.move_on_after(limits.LINK_TIMEOUT_S) as attaching:
                await channel.send(Attach(self.target.session, self._stage))
            if attaching.cancelled_caught:
                raise PeerUnavailable(f"not attached within {limits.LINK_TIMEOUT_S:g} s")
            self._channel = channel
            self._settled.set()
            try:
                while isinstance(answer := await channel.receive(), Unknown):
                    self._take_unknown(answer)
            finally:
                self._channel = None
            if isinstance(answer, Error):
                raise PeerUnavailable(f"{answer.code}: {answer.message}")
            raise PeerUnavailable("the next hop closed the stream")

    def _take_unknown(self, unknown: Unknown) -> None:
        """Raises: Malformed, where nothing was named, or it was said before: what is sent again is bounded."""
        if not self.names_rows or unknown.number not in self._named:
            raise Malformed("does not know what was not named")
        self.names_rows = False
        self._named.clear()
        self._on_unknown(self, unknown.number)
