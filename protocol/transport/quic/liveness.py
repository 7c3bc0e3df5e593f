"""When to ask a silent peer whether it lives, and when to believe that it does not. Pure.

The system's report that nobody listens at the peer's port (an ICMP message, after its process was killed) may be
forged or may be about something else, so it is a hint: it provokes a PING, and only hints that repeat after time
enough for an answer count as death.
"""

from __future__ import annotations

from enum import Enum, auto

from protocol.transport.limits import FIRST_PROBE_S, REFUSAL_PROBE_S, REFUSALS_TO_DIE


class Verdict(Enum):
    """What a report that nobody listens means."""

    KNOWN = auto()  # the question it answers is still open
    ASK = auto()
    DEAD = auto()


class Liveness:
    """What is known of one peer's life. Times are of one clock, in seconds."""

    def __init__(self, now: float, keepalive_s: float) -> None:
        self.heard_at = now  # the last packet from the peer
        self.active_at = now  # the last data, either way
        self._probed_at = now
        self._keepalive_s = keepalive_s
        self._refusals = 0
        self._refused_at = now
        self._refusal_gap_s = REFUSAL_PROBE_S

    def heard(self, now: float) -> None:
        """A packet came."""
        self.heard_at = now
        self._refusals = 0

    def active(self, now: float) -> None:
        """Data passed."""
        self.active_at = now

    def probed(self, now: float) -> None:
        """A PING was sent."""
        self._probed_at = now

    def next_probe_at(self, waiting: bool) -> float:
        """When to send a PING.

        While streams are open (`waiting`), soon after the last data and then, while the peer answers, after as
        long again each time, so that a death is noticed after at most about twice the silence before it.
        """
        if self._refusals:
            return self._probed_at + self._refusal_gap_s
        gap = self._keepalive_s
        if waiting:
            gap = min(gap, max(FIRST_PROBE_S, self.heard_at - self.active_at))
        return max(self.heard_at, self._probed_at, self.active_at) + gap

    def refused(self, now: float, round_trip_s: float) -> Verdict:
        """The system reports that nobody listens where the peer was."""
        if self._refusals and now < self._refused_at + self._refusal_gap_s:
            return Verdict.KNOWN
        self._refusals += 1
        self._refused_at = now
        self._refusal_gap_s = max(REFUSAL_PROBE_S, 2 * round_trip_s)
        return Verdict.DEAD if self._refusals >= REFUSALS_TO_DIE else Verdict.ASK
