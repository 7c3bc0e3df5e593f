"""Which parcel is asked of whom. Pure.

`now` is in seconds on a clock that does not jump. Holders have whole stages, so the rarest parcels are those of the
stages that the fewest have: they are asked for first. Who is far slower than another who has the same is left, and
towards the end, who is done takes over what a slower one was asked for.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Final

from protocol import limits

# What is asked of a peer ahead: so much of what it gives in this time, or two parcels.
AHEAD_S: Final = 1.0
AHEAD_LEAST: Final = 2
AHEAD_MOST_BYTES: Final = 16 * limits.PARCEL_BYTES
# Of the newest parcel, in the running mean of a peer's pace.
_PACE_WEIGHT: Final = 0.3
# Who takes so many times as long for a parcel as another who has it would, and at least so long, is left.
SLOWER: Final = 8.0
PATIENCE_S: Final = 2.0
# A parcel is asked of a second peer where the first will take so many times as long for it, and so much longer.
TAKE_OVER: Final = 3.0
TAKE_OVER_S: Final = 1.0


@dataclass(slots=True)
class _Peer:
    """A holder, what was asked of it and has not come, and how fast it gives."""

    stages: frozenset[bytes]
    asked: dict[bytes, int] = field(default_factory=dict)  # parcel -> bytes, in the order of asking
    since: float = 0.0  # when it was asked for the first of these, or gave the one before
    bytes_per_s: float | None = None

    @property
    def asked_bytes(self) -> int:
        return sum(self.asked.values())


class Orders:
    """The parcels that are wanted. `sizes`: of each stage, by its digest, the bytes of each parcel by its hash."""

    def __init__(self, sizes: Mapping[bytes, Mapping[bytes, int]], rng: random.Random) -> None:
        self._rng = rng
        self._wanted: dict[bytes, int] = {}
        self._stages_of: dict[bytes, list[bytes]] = {}
        # By stage: what may have been asked of nobody. A parcel that two stages have is in two of them.
        self._queues = {stage: deque(parcels) for stage, parcels in sizes.items()}
        self._count = {stage: len(parcels) for stage, parcels in sizes.items()}  # of what has not come
        for stage, parcels in sizes.items():
            self._wanted.update(parcels)
            for parcel in parcels:
                self._stages_of.setdefault(parcel, []).append(stage)
        self.missing_bytes = sum(self._wanted.values())  # what has not come
        self._peers: dict[str, _Peer] = {}

    # --- what is left to do

    @property
    def done(self) -> bool:
        """Whether everything has come."""
        return not self._wanted

    def lacking(self) -> set[bytes]:
        """Stages of which something has not come, and that no peer here has."""
        held = frozenset[bytes]().union(*(peer.stages for peer in self._peers.values()))
        return {stage for stage, count in self._count.items() if count and stage not in held}

    def is_wanted(self, stages: Collection[bytes]) -> bool:
        """Whether something of these stages has not come."""
        return any(self._count.get(stage) for stage in stages)

    # --- peers

    def meet(self, peer: str, stages: Collection[bytes]) -> None:
        """`peer` gives these stages from now on."""
        self._peers[peer] = _Peer(frozenset(stages) & self._queues.keys())

    def leave(self, peer: str) -> None:
        """`peer` gives nothing more: what it was asked for is asked of others."""
        gone = self._peers.pop(peer, None)
        for parcel in gone.asked if gone is not None else ():
            self._give_back(parcel)

    def next(self, peer: str, now: float) -> bytes | None:
        """The parcel to ask `peer` for now, which counts as asked; None if there is none, or enough is on its way."""
        giver = self._peers[peer]
        if not self._may_ask(giver):
            return None
        parcel = self._unasked(giver)
        if parcel is None and not giver.asked:
            parcel = self._slower(giver, now)
        if parcel is None:
            return None
        if not giver.asked:
            giver.since = now
        giver.asked[parcel] = self._wanted[parcel]
        return parcel

    def first(self, peer: str) -> tuple[bytes, int] | None:
        """The parcel that comes next from `peer`, and its bytes."""
        return next(iter(self._peers[peer].asked.items()), None)

    def came(self, peer: str, now: float) -> None:
        """The next parcel has come from `peer`, and is right. It is not wanted any more."""
        giver = self._peers[peer]
        parcel, size = next(iter(giver.asked.items()))
        del giver.asked[parcel]
        pace = size / max(now - giver.since, 1e-3)
        known = giver.bytes_per_s
        weight = _PACE_WEIGHT * size / limits.PARCEL_BYTES  # small ones say little
        giver.bytes_per_s = pace if known is None else known + weight * (pace - known)
        giver.since = now
        if parcel in self._wanted:
            self.missing_bytes -= self._wanted.pop(parcel)
            for stage in self._stages_of[parcel]:
                self._count[stage] -= 1

    def overdue(self, now: float) -> list[str]:
        """Peers that have taken far longer for a parcel than another here would that has it."""
        found = []
        for name, giver in self._peers.items():
            first = next(iter(giver.asked.items()), None)
            if first is None or now - giver.since <= PATIENCE_S:
                continue
            parcel, size = first
            paces = [
                other.bytes_per_s
                for other in self._peers.values()
                if other is not giver and other.bytes_per_s and self._has(other, parcel)
            ]
            if paces and now - giver.since > SLOWER * size / max(paces):
                found.append(name)
        return found

    # --- inside

    def _may_ask(self, giver: _Peer) -> bool:
        if len(giver.asked) < AHEAD_LEAST:
            return True
        ahead_bytes = min(AHEAD_MOST_BYTES, AHEAD_S * (giver.bytes_per_s or 0.0))
        return len(giver.asked) < limits.PARCELS_ASKED and giver.asked_bytes < ahead_bytes

    def _unasked(self, giver: _Peer) -> bytes | None:
        while stages := [stage for stage in giver.stages if self._queues[stage]]:
            holders = {stage: sum(stage in peer.stages for peer in self._peers.values()) for stage in stages}
            fewest = min(holders.values())
            # Of equals any: those who fetch at the same time then have different things to give.
            stage = self._rng.choice(sorted(stage for stage in stages if holders[stage] == fewest))
            parcel = self._queues[stage].popleft()
            if parcel in self._wanted and not self._asked(parcel):
                return parcel
        return None

    def _slower(self, giver: _Peer, now: float) -> bytes | None:
        """A parcel that another was asked for, and that `giver` would bring much sooner."""
        if giver.bytes_per_s is None:
            return None
        best: tuple[float, bytes] | None = None
        for other in self._peers.values():
            due_s = other.since - now
            for parcel, size in other.asked.items():
                due_s += size / (other.bytes_per_s or limits.PARCEL_BYTES_PER_S)
                own_s = size / giver.bytes_per_s
                sooner = due_s > TAKE_OVER * own_s + TAKE_OVER_S
                if sooner and parcel in self._wanted and self._has(giver, parcel) and self._asked(parcel) < 2:
                    best = max(best or (due_s, parcel), (due_s, parcel))
        return best[1] if best is not None else None

    def _has(self, giver: _Peer, parcel: bytes) -> bool:
        return any(stage in giver.stages for stage in self._stages_of[parcel])

    def _asked(self, parcel: bytes) -> int:
        return sum(parcel in peer.asked for peer in self._peers.values())

    def _give_back(self, parcel: bytes) -> None:
        if parcel in self._wanted and not self._asked(parcel):
            for stage in self._stages_of[parcel]:
                self._queues[stage].appendleft(parcel)
