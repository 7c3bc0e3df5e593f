"""Peers that failed, and until when they are not asked again. `now` is monotonic, in seconds.

A ban keeps a client from asking again in vain; it is no punishment, for a new identity costs nothing. So it ends as
soon as it has no sense any more: an honest peer's when the peer answers, or says something new; each one's as the
failures behind it grow old; and where nobody else serves some layers a ban is but a short pause.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

FIRST_BAN_S: Final = 15.0  # doubles with each strike
LONGEST_BAN_S: Final = 600.0
MOST_STRIKES: Final = 7  # more make no ban longer, and so a peer's record is clean in minutes, not in days
# A strike is forgotten when its ban has been over for so long: as long as a node's word holds.
STRIKE_LIFE_S: Final = 60.0
# An answer ends the ban of an honest peer, unless it has failed more often than this though it answers: then it has
# to sit out its ban, so that those are asked that do better.
LIFTED_STRIKES: Final = 3
# The pause before an honest peer is tried again that alone serves some layers. Of one that broke the rules it is a
# first ban.
PAUSE_S: Final = 1.0
# Peers of each kind that are remembered, honest ones apart from others, so that neither crowd out the other.
PEERS: Final = 2048


@dataclass(slots=True)
class _Standing:
    failed_at: float  # the latest failure
    until: float = 0.0  # of the ban
    strikes: int = 0
    aging_from: float = 0.0  # the end of the ban for the latest strike that is not forgotten
    down: bool = False  # has not answered since it failed
    busy_until: float = 0.0  # has no room
    busy_try_at: float = 0.0

    def age(self, now: float) -> None:
        """Forget strikes that are old."""
        forgotten = min(self.strikes, int(max(0.0, now - self.aging_from) / STRIKE_LIFE_S))
        self.strikes -= forgotten
        self.aging_from += forgotten * STRIKE_LIFE_S

    def bans(self, now: float) -> bool:
        return max(self.until, self.busy_until) > now


class Bans:
    """Doubling bans of at most twice PEERS peers; who failed longest ago is forgotten first."""

    def __init__(self) -> None:
        self._honest: dict[str, _Standing] = {}
        self._others: dict[str, _Standing] = {}  # of peers that broke the rules

    def __len__(self) -> int:
        return len(self._honest) + len(self._others)

    def ban(self, peer: str, now: float, *, honest: bool) -> None:
        """`peer` failed. An `honest` failure (unreachable, lost) is forgiven when the peer answers again.

        Until it answers, further honest failures are the same one: they keep it banned, but are no strikes.
        """
        known, length_s = self._find(peer, now) or _Standing(now), FIRST_BAN_S
        if not honest or not known.down:
            known.strikes = min(known.strikes + 1, MOST_STRIKES)
            length_s = min(FIRST_BAN_S * 2.0 ** (known.strikes - 1), LONGEST_BAN_S)
            known.aging_from = now + length_s
        known.failed_at, known.down = now, True
        known.until = max(known.until, now + length_s)
        self._keep(peer, known, honest=honest and peer not in self._others)

    def pause(self, peer: str, now: float, seconds: float, *, alone_s: float | None = None) -> None:
        """`peer` has no room, or no time, and is to be asked again after `seconds`: that is no failure.

        Where nobody else serves what it does, after `alone_s`, or sooner than the longest such wait anyway.
        """
        known = self._find(peer, now) or _Standing(now)
        known.busy_until = now + min(max(seconds, PAUSE_S), LONGEST_BAN_S)
        known.busy_try_at = now + min(max(seconds if alone_s is None else alone_s, PAUSE_S), FIRST_BAN_S)
        self._keep(peer, known, honest=peer not in self._others)

    def answered(self, peer: str, now: float) -> None:
        """`peer` answered; ends its ban if that was for an honest failure."""
        known = self._find(peer, now)
        if known is None:
            return
        known.down = False
        if peer in self._honest and known.strikes <= LIFTED_STRIKES:
            known.until = min(known.until, now)
            known.aging_from = min(known.aging_from, now)

    def renewed(self, peer: str, issued_at: float, now: float) -> None:
        """`peer` has said something at `issued_at`: if that is after its failure, it is as good as an answer."""
        known = self._find(peer, now)
        if known is not None and issued_at > known.failed_at:
            self.answered(peer, now)

    def banned(self, peer: str, now: float) -> bool:
        """Whether `peer` is not to be asked now."""
        known = self._find(peer, now)
        return known is not None and known.bans(now)

    def wait_s(self, peer: str, now: float) -> float | None:
        """How long to leave a banned peer alone where nobody else serves what it does; None: until it answers."""
        known = self._find(peer, now)
        if known is None or not known.bans(now):
            return 0.0
        pause_s = FIRST_BAN_S if peer in self._others else PAUSE_S
        return None if known.down else max(0.0, known.failed_at + pause_s - now, known.busy_try_at - now)

    def is_down(self, peer: str, now: float) -> bool:
        """Whether `peer` has not answered since it failed."""
        known = self._find(peer, now)
        return known is not None and known.down

    def is_hopeless(self, peer: str, now: float) -> bool:
        """Whether `peer` has failed even when it was tried again though banned."""
        known = self._find(peer, now)
        return known is not None and known.strikes > LIFTED_STRIKES + 1

    def guilt(self, peer: str, now: float) -> tuple[bool, int, float]:
        """Peers sorted by this come with the least guilty first."""
        known = self._find(peer, now)
        return (
            (peer in self._others, known.strikes, known.failed_at) if known is not None else (False, 0, 0.0)
        )

    def _find(self, peer: str, now: float) -> _Standing | None:
        """What is remembered of a peer, without what is old."""
        known = self._others.get(peer) or self._honest.get(peer)
        if known is None:
            return None
        known.age(now)
        if known.strikes == 0 and not known.bans(now):
            self._drop(peer)
            return None
        return known

    def _drop(self, peer: str) -> None:
        self._honest.pop(peer, None)
        self._others.pop(peer, None)

    def _keep(self, peer: str, known: _Standing, *, honest: bool) -> None:
        self._drop(peer)
        kept = self._honest if honest else self._others
        kept[peer] = known
        if len(kept) > PEERS:
            del kept[next(iter(kept))]
