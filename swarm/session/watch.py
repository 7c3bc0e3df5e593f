"""When a hop that says nothing is asked, when it is given up, and when it is too slow; pure.

A hop answers pings from its event loop, never behind a computation: silence means that the process is gone,
stopped or cut off, not that it computes. A hop that answers but does not get on has the time that its own
announced speed gives, with a slack.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from protocol.journal import Journal
from swarm.session.hop_stream import HopStream

# A hop that has not got on for this long while a step is out is asked whether it is there ...
PING_AFTER_S: Final = 0.5
# ... and given up after this long: the event loop of a busy machine may stall for a second, hardly for more.
DEAD_AFTER_S: Final = 3.0
# A ping waits behind the steps sent before it, which may be large; who talks meanwhile and never answers evades it.
PONG_AFTER_S: Final = 6.0
# A hop says it sent a step on, the next one (which answers pings) has not got it: the link between is broken.
LINK_STALL_S: Final = 2.0
# What a hop may take beyond its announced speed: other sessions' turns, a machine that pauses ...
PROGRESS_FLOOR_S: Final = 5.0
# ... and how much slower than announced it may compute: a machine that others began to use as well.
SLACK: Final = 8.0
# A hop whose results the client carries may take as long as this for what has come: slower links are worth leaving.
CARRIED_BYTES_PER_S: Final = 1 << 20
# The longest that a hop is waited for, whatever it announces and however patient we have become.
STEP_STALL_S: Final = 120.0


@dataclass(frozen=True, slots=True)
class Probe:
    """Ping this hop."""

    link: HopStream


@dataclass(frozen=True, slots=True)
class GiveUp:
    """This hop failed. `honest`: it is gone or cut off, rather than misbehaving."""

    link: HopStream
    reason: str
    honest: bool


@dataclass(frozen=True, slots=True)
class Slow:
    """This hop is there and does not get on. `honest`: by what it says, it has not passed on what it owes."""

    link: HopStream
    reason: str
    honest: bool


@dataclass(frozen=True, slots=True)
class Unlinked:
    """What this hop sends on does not arrive at the next."""

    link: HopStream


Verdict = Probe | GiveUp | Slow | Unlinked


@dataclass(frozen=True, slots=True)
class _Lack:
    """Steps below `number` were sent on to a hop, it was said at `since`; it had not got them then."""

    number: int
    since: float


class Watch:
    """Looks at a session's hops again and again; `journal` tells how large the steps are."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._lacks: dict[HopStream, _Lack] = {}

    def look(self, links: Sequence[HopStream], now: float, since: float) -> Iterator[Verdict]:
        """What to do about the hops, a step being out `since` then."""
        self._lacks = {
            link: lack for link, lack in self._lacks.items() if link in links and link.feed is None
        }
        before: HopStream | None = None
        for link in links:
            if link.failure is None:
                yield from self._look_at(link, before, now, since)
            before = link

    def _look_at(
        self, link: HopStream, before: HopStream | None, now: float, since: float
    ) -> Iterator[Verdict]:
        claims = link.claims
        quiet_s = now - max(claims.progress_at, claims.pong_at, since)
        asked = claims.asked_since
        if quiet_s > DEAD_AFTER_S:
            yield GiveUp(link, f"silent for {quiet_s:.1f} s", True)
            return
        if asked is not None and now - max(asked, since) > PONG_AFTER_S:
            yield GiveUp(link, f"did not answer a ping for {PONG_AFTER_S:g} s", True)
            return
        if quiet_s > PING_AFTER_S and asked is None:
            yield Probe(link)
        if claims.owes_since is not None:
            waited_s = now - max(claims.owes_since, since)
            if waited_s > PROGRESS_FLOOR_S and waited_s > self._allowed_s(link):
                withheld = claims.acked > claims.through and not claims.carried_bytes
                yield Slow(link, f"got nowhere in {waited_s:.0f} s", not withheld)
                return
        if before is not None and before.failure is None and link.feed is None:
            yield from self._look_between(before, link, now, since)

    def _allowed_s(self, link: HopStream) -> float:
        """How long a hop may take for what it has had to do since it began to owe, by its own announcement."""
        claims, hop = link.claims, link.hop
        steps = rows = 0
        for entry in self._journal.between(claims.owes_from - 1, claims.received - 1):
            rows += entry.rows.rows
            steps += entry.number >= link.filled_at  # what fills it comes in large chunks
        compute_ms = (steps + 1) * (hop.queue_ms + hop.token_ms) + rows * hop.row_ms
        allowed_s = PROGRESS_FLOOR_S + SLACK * compute_ms / 1e3 + claims.carried_bytes / CARRIED_BYTES_PER_S
        return min(allowed_s * link.patience, STEP_STALL_S)

    def _look_between(
        self, before: HopStream, link: HopStream, now: float, since: float
    ) -> Iterator[Verdict]:
        lack = self._lacks.get(link)
        if lack is None or link.claims.received >= lack.number:
            self._lacks.pop(link, None)
            if before.claims.acked > link.claims.received:
                self._lacks[link] = _Lack(before.claims.acked, now)
            return
        lacks_since = max(lack.since, since)
        # both answered since: else one of them is cut off, and there is nothing to bridge
        answered_at = min(link.claims.pong_at, max(before.claims.pong_at, before.claims.progress_at))
        if now - lacks_since > LINK_STALL_S and answered_at > lacks_since + LINK_STALL_S / 2:
            del self._lacks[link]
            yield Unlinked(before)
