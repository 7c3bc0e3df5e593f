"""One direction of a stream in memory: what was sent, when it arrives, and how it ends."""

from __future__ import annotations

import math
import random
from collections import deque
from dataclasses import dataclass, field

import trio

from protocol.errors import LocalProtocolError, PeerUnavailable
from protocol.transport.limits import STREAM_WINDOW

# A retransmission costs about one and a half round trips, and never less than a timer's granularity.
_RETRANSMIT_ROUND_TRIPS = 1.5
_RETRANSMIT_FLOOR_S = 0.01
_PIECE = 64 * 1024


@dataclass(slots=True)
class Line:
    """What lies between two peers; blocked while they are cut off or one of them is paused."""

    latency_s: float
    loss: float
    blocked_since: float | None = None
    healed: trio.Event = field(default_factory=trio.Event)

    def block(self, now: float) -> None:
        """Let nothing more arrive."""
        if self.blocked_since is None:
            self.blocked_since = now
            self.healed = trio.Event()

    def heal(self) -> None:
        """Let what waited arrive."""
        self.blocked_since = None
        self.healed.set()

    def has_arrived(self, at: float, now: float) -> bool:
        """Whether something due at `at` has got through by `now`."""
        return at <= (now if self.blocked_since is None else min(now, self.blocked_since))


@dataclass(frozen=True, slots=True)
class _Failure:
    at: float
    kind: type[PeerUnavailable]
    message: str

    def error(self) -> PeerUnavailable:
        return self.kind(self.message)


class Pipe:
    """Bytes from one end of a stream to the other, in order, at most a window of them unread."""

    def __init__(self, line: Line, rng: random.Random) -> None:
        self._line = line
        self._rng = rng
        self._arriving: deque[tuple[float, bytes]] = deque()  # b"" is the end
        self._unread_bytes = 0
        self._last_at = -math.inf
        self._finished = False
        self._discarding = False
        self._send_failure: _Failure | None = None
        self._receive_failure: _Failure | None = None
        self._changed = trio.Event()

    # --- the sending end

    async def send(self, data: bytes) -> None:
        """Put all of `data` in; waits for room. Raises: what ended the pipe."""
        view = memoryview(data)
        await trio.lowlevel.checkpoint()
        while True:
            if self._finished:
                raise LocalProtocolError("send after finish")
            self._raise_if_due(self._send_failure)
            if not view or self._discarding:
                return
            room = STREAM_WINDOW - self._unread_bytes
            if room > 0:
                self.send_now(view[:room])
                view = view[room:]
            else:
                await self._wait(self._send_failure)

    @property
    def room(self) -> int:
        """Bytes that `send` would take at once."""
        failure = self._send_failure
        if self._finished or (failure is not None and self._has_arrived(failure.at)):
            return 0
        return max(0, STREAM_WINDOW - self._unread_bytes)

    def send_now(self, data: bytes | memoryview) -> None:
        """Put all of `data` in, for which there is room."""
        for start in range(0, 0 if self._discarding else len(data), _PIECE):
            piece = bytes(data[start : start + _PIECE])
            self._unread_bytes += len(piece)
            self._put(piece)

    def finish(self) -> None:
        """No more will be sent."""
        if not self._finished:
            self._finished = True
            self._put(b"")

    # --- the receiving end

    async def receive(self) -> bytes:
        """The next bytes, or b"" at the end. Raises: what ended the pipe."""
        await trio.lowlevel.checkpoint()
        while True:
            if not self._end_has_arrived():
                self._raise_if_due(self._receive_failure)
            if self._arriving and self._has_arrived(self._arriving[0][0]):
                data = self._arriving[0][1]
                if data:
                    self._arriving.popleft()
                    self._unread_bytes -= len(data)
                    self.notify()
                return data
            await self._wait(self._receive_failure, self._arriving[0][0] if self._arriving else math.inf)

    def discard(self) -> bool:
        """Throw away what is here and still comes; True if the sender had not finished."""
        unfinished = not self._end_has_arrived()
        self._discarding = True
        self._arriving.clear()
        self._unread_bytes = 0
        self.notify()
        return unfinished

    # --- both

    def fail(self, kind: type[PeerUnavailable], message: str, *, send_at: float, receive_at: float) -> None:
        """End the pipe: for the sender at one time, for the receiver at another (inf: not at all)."""
        if self._send_failure is None or send_at < self._send_failure.at:
            self._send_failure = _Failure(send_at, kind, message)
        if self._receive_failure is None or receive_at < self._receive_failure.at:
            self._receive_failure = _Failure(receive_at, kind, message)
        self.notify()

    def notify(self) -> None:
        """Let both ends look again."""
        self._changed.set()
        self._changed = trio.Event()

    def arrival(self) -> float:
        """When something sent now arrives: after the latency, and after each loss a retransmission."""
        delay_s = self._line.latency_s
        while self._line.loss and self._rng.random() < self._line.loss:
            delay_s += max(_RETRANSMIT_FLOOR_S, 2 * _RETRANSMIT_ROUND_TRIPS * self._line.latency_s)
        self._last_at = max(self._last_at, trio.current_time() + delay_s)
        return self._last_at

    async def wait_arrived(self, at: float) -> None:
        """Wait until something due at `at` has got through, or the receiver's end has failed."""
        while not self._has_arrived(at):
            self._raise_if_due(self._receive_failure)
            await self._wait(self._receive_failure, at)

    def _put(self, data: bytes) -> None:
        self._arriving.append((self.arrival(), data))
        self.notify()

    def _has_arrived(self, at: float) -> bool:
        return self._line.has_arrived(at, trio.current_time())

    def _end_has_arrived(self) -> bool:
        return bool(self._arriving) and not self._arriving[-1][1] and self._has_arrived(self._arriving[-1][0])

    def _raise_if_due(self, failure: _Failure | None) -> None:
        if failure is not None and self._has_arrived(failure.at):
            raise failure.error()

    async def _wait(self, failure: _Failure | None, until: float = math.inf) -> None:
        if failure is not None:
            until = min(until, failure.at)
        if self._line.blocked_since is not None:
            until = math.inf  # nothing arrives before `heal` notifies
        with trio.move_on_at(until):
            await self._changed.wait()
