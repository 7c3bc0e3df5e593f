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
from swarm.routing.route import Hop
from swarm.session.claims import Claims

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
class Watched:
    """A hop as it is now, for whoever judges how long it takes."""

    id: bytes  # of its session
    planned: Hop  # what it announces
    claims: Claims
    failed: bool
    fed_here: bool  # by the client, not by the hop before it
    filled_at: int  # the steps received when its filling is done
    patience: int  # how many times the usual time it may take


@dataclass(frozen=True, slots=True)
class Probe:
    """Ping this hop. Hops are named by their number."""

    hop: int


@dataclass(frozen=True, slots=True)
class GiveUp:
    """This hop failed. `honest`: it is gone or cut off, rather than misbehaving."""

    hop: int
    reason: str
    honest: bool


@dataclass(frozen=True, slots=True)
class Slow:
    """This hop is there and does not get on. `honest`: by what it says, it has not passed on what it owes."""

    hop: int
    reason: str
    honest: bool


@dataclass(frozen=True, slots=True)
class Unlinked:
    """What this hop sends on does not arrive at the next."""

    hop: int


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
        self._lacks: dict[bytes, _Lack] = {}  # by the hop that lacks them

    def look(self, hops: Sequence[Watched], now: float, since: float) -> Iterator[Verdict]:
        """What to do about the hops, a step being out `since` then."""
        fed_by_hops = {hop.id for hop in hops if not hop.fed_here}
        self._lacks = {hop: lack for hop, lack in self._lacks.items() if hop in fed_by_hops}
        before: Watched | None = None
        for number, hop in enumerate(hops):
            verdicts = [] if hop.failed else list(self._look_at(number, hop, now, since))
            yield from verdicts
            if hop.failed or any(isinstance(verdict, GiveUp | Slow) for verdict in verdicts):
                before = None
                continue
            if before is not None and not hop.fed_here and self._is_cut(before, hop, now, since):
                yield Unlinked(number - 1)
            before = hop

    def _look_at(self, number: int, hop: Watched, now: float, since: float) -> Iterator[Verdict]:
        claims = hop.claims
        quiet_s = now - max(claims.progress_at, claims.pong_at, since)
        asked = claims.asked_since
        if quiet_s > DEAD_AFTER_S:
            yield GiveUp(number, f"silent for {quiet_s:.1f} s", True)
            return
        if asked is not None and now - max(asked, since) > PONG_AFTER_S:
            yield GiveUp(number, f"did not answer a ping for {PONG_AFTER_S:g} s", True)
            return
        if quiet_s > PING_AFTER_S and asked is None:
            yield Probe(number)
        if claims.owes_since is not None:
            waited_s = now - max(claims.owes_since, since)
            if waited_s > PROGRESS_FLOOR_S and waited_s > self._allowed_s(hop):
                withheld = claims.acked > claims.through and not claims.carried_bytes
                yield Slow(number, f"got nowhere in {waited_s:.0f} s", not withheld)

    def _allowed_s(self, hop: Watched) -> float:
        """How long a hop may take for what it has had to do since it began to owe, by its own announcement."""
        claims, planned = hop.claims, hop.planned
        steps = rows = 0
        for entry in self._journal.between(claims.owes_from - 1, claims.received - 1):
            rows += entry.rows.rows
            steps += entry.number >= hop.filled_at  # what fills it comes in large chunks
        compute_ms = (steps + 1) * (planned.queue_ms + planned.token_ms) + rows * planned.row_ms
        allowed_s = PROGRESS_FLOOR_S + SLACK * compute_ms / 1e3 + claims.carried_bytes / CARRIED_BYTES_PER_S
        return min(allowed_s * hop.patience, STEP_STALL_S)

    def _is_cut(self, before: Watched, hop: Watched, now: float, since: float) -> bool:
        """Whether a hop has lacked for a while what the one before sent on to it, though both answer."""
        lack = self._lacks.get(hop.id)
        if lack is None or hop.claims.received >= lack.number:
            self._lacks.pop(hop.id, None)
            if before.claims.acked > hop.claims.received:
                self._lacks[hop.id] = _Lack(before.claims.acked, now)
            return False
        lacks_since = max(lack.since, since)
        # both answered since: else one of them is cut off, and there is nothing to bridge
        answered_at = min(hop.claims.pong_at, max(before.claims.pong_at, before.claims.progress_at))
        if now - lacks_since <= LINK_STALL_S or answered_at <= lacks_since + LINK_STALL_S / 2:
            return False
        del self._lacks[hop.id]
        return True
