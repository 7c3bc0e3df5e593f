"""What a hop says of its steps, held against what it can know; pure.

A stream is ordered: whoever answers a ping has received every step that was sent on that stream before it. What a
hop has received, computed and passed on only grows. Whoever says otherwise lies, and that is Malformed.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from protocol.errors import Malformed
from protocol.messages import Ack, Ping, Pong
from swarm.session.outputs import Misfit


@dataclass(frozen=True, slots=True)
class Asking:
    """A ping that waits for its answer."""

    nonce: int
    at: float
    sent: int  # steps sent before it on the same stream: the highest number plus one


class Claims:
    """Of one hop, from `now` on. Steps are counted by the highest number plus one."""

    def __init__(self, now: float) -> None:
        self.sent = 0  # on its own stream, by us
        self.received = 0  # as of the latest pong or ack
        self.computed = 0
        self.acked = 0  # computed and sent on, it says
        self.delivered: int | None = None  # whose results came to us, where they are to come to us
        self.carried_bytes = 0  # of results that came since it began to owe
        self.progress_at = now
        self.pong_at = now
        self.owes_since: float | None = None  # since when it has what it has not passed on
        self.owes_from = 0  # the first step that it owed then
        self._pings: deque[Asking] = deque()
        self._nonce = 0

    @property
    def through(self) -> int:
        """Steps that it is done with."""
        return self.acked if self.delivered is None else min(self.acked, self.delivered)

    @property
    def asked_since(self) -> float | None:
        """When the oldest ping was sent that waits for its answer."""
        return self._pings[0].at if self._pings else None

    def begin_at(self, number: int) -> None:
        """It begins with all that another session's steps below `number` gave."""
        self.sent = self.received = self.computed = self.acked = self.owes_from = number

    def ping(self, now: float) -> Ping:
        """The next ping, which is to be sent behind the steps that `sent` counts."""
        self._nonce += 1
        self._pings.append(Asking(self._nonce, now, self.sent))
        return Ping(self._nonce)

    def pong(self, pong: Pong, reach: int, now: float) -> None:
        """Take an answer; steps below `reach` are all that were sent, by whomever. Raises: Malformed, Misfit."""
        if not self._pings or pong.nonce != self._pings[0].nonce:
            raise Malformed("answered a ping that was not sent")
        asking = self._pings.popleft()
        if pong.received < max(asking.sent, self.received):
            raise Malformed(f"denies step {max(asking.sent, self.received) - 1}, which it was sent")
        if not max(self.acked, self.computed) <= pong.computed <= pong.received:
            raise Malformed("claims to have computed what it has not, or not to have what it has")
        if pong.received > max(reach, self.received):
            raise Misfit(f"claims step {pong.received - 1}, which was never sent")
        self.received, self.computed, self.pong_at = pong.received, pong.computed, now
        self._note(now)

    def ack(self, ack: Ack, now: float) -> None:
        """Take an acknowledgement."""
        if ack.number >= self.acked:
            self.acked = ack.number + 1
            self.received = max(self.received, self.acked)
            self.computed = max(self.computed, self.acked)
            if self.delivered is None:
                self.progress_at = now
            self._note(now)

    def owe_results(self, delivered: int, now: float) -> None:
        """From now on the results of steps come to us, or will, of those from `delivered` on."""
        self.delivered = delivered
        self._note(now)

    def deliver(self, number: int, size_bytes: int, now: float) -> None:
        """The result of a step came to us."""
        if self.delivered is not None and number >= self.delivered:
            self.delivered = number + 1
            self.carried_bytes += size_bytes
            self.progress_at = now
            self._note(now)

    def _note(self, now: float) -> None:
        if self.received <= self.through:
            self.owes_since = None
        elif self.owes_since is None:
            self.owes_since, self.owes_from, self.carried_bytes = now, self.through, 0
