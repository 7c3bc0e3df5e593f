"""Who of many is to be called next, and when. Pure."""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)

_SLACK_S = 1e-4


class Timers(Generic[K]):
    """What each has wished for. Whoever is called too early, as its wish has grown later, wishes again."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, K]] = []
        self._numbers = itertools.count()
        self._wishes: dict[K, list[float]] = {}  # of each, the next one last

    def __len__(self) -> int:
        return len(self._heap)

    @property
    def next_at(self) -> float:
        """When the first of them is due; never, if there is none."""
        return self._heap[0][0] if self._heap else math.inf

    def wish(self, who: K, when: float) -> None:
        """`who` is to be called at `when`, or before that if it has wished so: a later wish adds nothing."""
        known = self._wishes.setdefault(who, [])
        # Earlier wishes come on top of later ones, so that the list is the order of their coming.
        if not known or when < known[-1] - _SLACK_S:
            known.append(when)
            heapq.heappush(self._heap, (when, next(self._numbers), who))

    def pop(self, now: float) -> K | None:
        """Somebody who is due; None, if nobody is any more."""
        if self.next_at > now:
            return None
        who = heapq.heappop(self._heap)[2]
        known = self._wishes[who]
        known.pop()
        if not known:
            del self._wishes[who]
        return who
