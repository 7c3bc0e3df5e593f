"""Who gives way when strangers want more places than there are. Pure.

A newcomer is never turned away, because whoever filled the places would then have them for good. Instead one of those
inside gives way: of the origin that has the most, of its holder (an identity, an address) that has the most, the one
that came first. So many places for one never cost another its own, and among equals whoever has just come stays the
longest: as many others as its origin has places have to follow before it is its turn.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
M = TypeVar("M", bound=Hashable)


class _Ranking(Generic[K]):
    """How many each key has, and who has the most: of equals, who had more before, then who came first."""

    def __init__(self) -> None:
        self._counts: dict[K, int] = {}
        self._having: dict[int, OrderedDict[K, None]] = {}
        self._most = 0

    def __bool__(self) -> bool:
        return bool(self._counts)

    def first(self) -> K:
        return next(iter(self._having[self._most]))

    def more(self, key: K) -> None:
        self._move(key, 1)

    def less(self, key: K) -> None:
        self._move(key, -1)

    def _move(self, key: K, by: int) -> None:
        before = self._counts.pop(key, 0)
        after = before + by
        if before:
            equals = self._having[before]
            del equals[key]
            if not equals:
                del self._having[before]
        if after:
            self._counts[key] = after
            equals = self._having.setdefault(after, OrderedDict())
            equals[key] = None
            equals.move_to_end(key, last=by > 0)
        # Numbers change by one, so the most does too.
        if after > self._most or self._most not in self._having:
            self._most = after if self._counts else 0


class Crowd(Generic[M]):
    """Those who hold a place, by origin and holder. Every operation takes the same short time."""

    def __init__(self) -> None:
        self._places: dict[M, tuple[str, str]] = {}
        self._members: dict[tuple[str, str], dict[M, None]] = {}
        self._origins: _Ranking[str] = _Ranking()
        self._holders: dict[str, _Ranking[str]] = {}

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, member: M) -> bool:
        return member in self._places

    def enter(self, member: M, origin: str, holder: str) -> None:
        """`member` has come, or has been of use and counts as come anew."""
        self.leave(member)
        self._places[member] = (origin, holder)
        self._members.setdefault((origin, holder), {})[member] = None
        self._origins.more(origin)
        self._holders.setdefault(origin, _Ranking()).more(holder)

    def leave(self, member: M) -> bool:
        """`member` has gone; False if it was not here."""
        place = self._places.pop(member, None)
        if place is None:
            return False
        origin, holder = place
        of_holder = self._members[place]
        del of_holder[member]
        if not of_holder:
            del self._members[place]
        self._origins.less(origin)
        holders = self._holders[origin]
        holders.less(holder)
        if not holders:
            del self._holders[origin]
        return True

    def touch(self, member: M) -> None:
        """`member` has been of use: it counts as come anew."""
        place = self._places.get(member)
        if place is not None:
            self.enter(member, *place)

    def give_way(self) -> M:
        """Who goes; it has left. There has to be somebody."""
        origin = self._origins.first()
        holder = self._holders[origin].first()
        member = next(iter(self._members[origin, holder]))
        self.leave(member)
        return member
