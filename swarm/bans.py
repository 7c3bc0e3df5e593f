"""Peers that failed, and until when they are not asked again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

FIRST_BAN_S: Final = 15.0
LONGEST_BAN_S: Final = 600.0
# A peer that answers probes but failed this often in a row (15, 30, 60 s) has to sit out its ban.
FORGIVEN_UP_TO_S: Final = 60.0


@dataclass(slots=True)
class _Ban:
    until: float
    length_s: float
    honest: bool


class Bans:
    """Doubling bans. `now` is monotonic, in seconds."""

    def __init__(self) -> None:
        self._bans: dict[str, _Ban] = {}

    def ban(self, peer: str, now: float, *, honest: bool, least_s: float = FIRST_BAN_S) -> None:
        """`peer` failed. An `honest` failure (unreachable, lost) is forgiven when the peer answers again."""
        before = self._bans.get(peer)
        length_s = min(max(least_s, 2 * before.length_s if before else 0.0), LONGEST_BAN_S)
        self._bans[peer] = _Ban(now + length_s, length_s, honest)

    def forgive(self, peer: str) -> None:
        """`peer` answered; ends its ban if that was for an honest failure. Its next ban is longer all the same."""
        ban = self._bans.get(peer)
        if ban is not None and ban.honest and ban.length_s <= FORGIVEN_UP_TO_S:
            ban.until = 0.0

    def banned(self, peer: str, now: float) -> bool:
        """Whether `peer` is not to be asked now."""
        ban = self._bans.get(peer)
        return ban is not None and ban.until > now
