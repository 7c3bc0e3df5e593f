"""How often, or how much, strangers may ask. Pure.

`now` is in seconds on a clock that does not jump.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

# Origins whose allowance is remembered, and peers of each; one forgotten has a full one again. Identities are free,
# so a peer is forgotten only for other peers of its own origin, whose common allowance goes on.
REMEMBERED_ORIGINS: Final = 1024
REMEMBERED_PEERS: Final = 64


class Allowance:
    """For each key `burst` at once, then `per_s` each second; the `remembered` keys that asked last are known."""

    def __init__(self, per_s: float, burst: float, remembered: int = REMEMBERED_ORIGINS) -> None:
        self._per_s = per_s
        self._burst = float(burst)
        self._remembered = remembered
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()  # key -> what was left, when

    def __len__(self) -> int:
        return len(self._left)

    def left(self, key: str, now: float) -> float:
        """What `key` has now."""
        left, at = self._left.get(key, (self._burst, now))
        return min(self._burst, left + (now - at) * self._per_s)

    def take(self, key: str, now: float, cost: float = 1.0) -> bool:
        """Whether `key` may have `cost` more, which is then taken.

        What costs more than the burst is granted to a full allowance, which then is in debt.
        """
        left = self.left(key, now)
        allowed = left >= min(cost, self._burst)
        self.spend(key, now, cost if allowed else 0.0)
        return allowed

    def wait_s(self, key: str, now: float, cost: float) -> float:
        """Take `cost` whatever there is; how long to wait until it is paid for."""
        self.spend(key, now, cost)
        return max(0.0, -self.left(key, now) / self._per_s)

    def spend(self, key: str, now: float, cost: float) -> None:
        """Take `cost` without asking."""
        self._left[key] = (self.left(key, now) - cost, now)
        self._left.move_to_end(key)
        if len(self._left) > self._remembered:
            self._left.popitem(last=False)


class PeerAllowance:
    """Each peer's allowance, remembered by origin first: identities of one origin do not push out another's."""

    def __init__(self, per_s: float, burst: float) -> None:
        self._per_s = per_s
        self._burst = burst
        self._origins: OrderedDict[str, Allowance] = OrderedDict()

    def __len__(self) -> int:
        return sum(map(len, self._origins.values()))

    def take(self, origin: str, peer: str, now: float, cost: float = 1.0) -> bool:
        """Whether `peer`, seen at `origin`, may have `cost` more, which is then taken."""
        return self._peers_of(origin).take(peer, now, cost)

    def wait_s(self, origin: str, peer: str, now: float, cost: float) -> float:
        """Take `cost` whatever there is; how long to wait until it is paid for."""
        return self._peers_of(origin).wait_s(peer, now, cost)

    def _peers_of(self, origin: str) -> Allowance:
        peers = self._origins.get(origin)
        if peers is None:
            peers = self._origins[origin] = Allowance(self._per_s, self._burst, REMEMBERED_PEERS)
        self._origins.move_to_end(origin)
        if len(self._origins) > REMEMBERED_ORIGINS:
            self._origins.popitem(last=False)
        return peers
