"""Messages over a stream: the only place where frames meet the network."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import TypeVar

import trio

from protocol import limits
from protocol.codec import FrameReader, encode
from protocol.errors import Lost, Malformed, TimedOut
from protocol.messages import Error, Message
from protocol.session import StreamState
from protocol.transport.base import Stream

M = TypeVar("M", bound=Message)


class Channel:
    """A stream of messages. Many tasks may send (each message whole, in the order of asking); one receives.

    With a `state`, every message either way is checked against the session's table. Owns the stream: leaving
    the `async with` block closes it, by reset if an exception is on its way.
    """

    def __init__(
        self, stream: Stream, *, state: StreamState | None = None, frame_limit: int = limits.FRAME_BYTES
    ) -> None:
        self.stream = stream
        self._state = state
        self._reader = FrameReader(frame_limit)
        self._sending = trio.Lock()
        self._torn = False  # a send was cancelled inside a frame

    @property
    def peer(self) -> str:
        """The verified id of the peer at the other end."""
        return self.stream.peer

    @property
    def frame_limit(self) -> int:
        """The largest frame taken from now on, in bytes; a peer may be allowed more once it is known."""
        return self._reader.limit

    @frame_limit.setter
    def frame_limit(self, limit: int) -> None:
        self._reader.limit = limit

    async def send(self, *messages: Message) -> None:
        """Send messages, together in as few packets as they fit.

        Raises: Lost; LocalProtocolError, if the session's table forbids one now.
        """
        try:
            self._sending.acquire_nowait()  # nearly always; `acquire` lets all other tasks run first
        except trio.WouldBlock:
            await self._sending.acquire()
        try:
            await self._send(messages)
        finally:
            self._sending.release()

    def send_now(self, *messages: Message) -> bool:
        """Send messages before any other task runs; False, and nothing is sent, where they have to wait.

        Raises: LocalProtocolError, if the session's table forbids one now.
        """
        if self._sending.locked() or self._torn:
            return False
        frames = _frames(messages)
        if len(frames) > self.stream.room:
            return False
        self._note_sent(messages)
        self.stream.send_now(frames)
        return True

    async def receive(self) -> Message | None:
        """The next message; None once the peer has finished. Raises: Lost, Malformed, TooLarge."""
        while True:
            message = self._reader.next()
            if message is not None:
                if self._state is not None:
                    self._state.received(message)
                return message
            data = await self.stream.receive()
            if not data:
                if self._reader.pending:
                    raise Malformed("the stream ended inside a frame")
                return None
            self._reader.feed(data)

    async def expect(self, kind: type[M], within_s: float) -> M:
        """The next message, which must be a `kind`.

        Raises: TimedOut, after `within_s` seconds; Lost, if there is none, or if the peer honestly says
        Error; Malformed, if it is another message.
        """
        try:
            with trio.fail_after(within_s):
                message = await self.receive()
        except trio.TooSlowError:
            raise TimedOut(f"{self.peer} did not answer within {within_s:g} s") from None
        if message is None:
            raise Lost(f"{self.peer} closed the stream")
        if isinstance(message, Error) and not issubclass(kind, Error):
            raise Lost(f"{self.peer} gave up: {message.code}: {message.message}")
        if not isinstance(message, kind):
            raise Malformed(f"{self.peer} answered {message.tag}, expected {kind.tag}")
        return message

    async def _send(self, messages: Sequence[Message]) -> None:
        if self._torn:
            raise Lost("a message was cut short by its sender")
        self._note_sent(messages)
        try:
            await self.stream.send(_frames(messages))
        except trio.Cancelled:
            self._torn = True
            raise

    def _note_sent(self, messages: Sequence[Message]) -> None:
        if self._state is not None:
            for message in messages:
                self._state.sent(message)

    async def __aenter__(self) -> Channel:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self.stream.reset()
        else:
            await self.stream.aclose()


def _frames(messages: Sequence[Message]) -> bytes:
    return b"".join(map(encode, messages)) if len(messages) > 1 else encode(messages[0])
