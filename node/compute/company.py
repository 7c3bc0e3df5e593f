"""For whom a batch waits: sessions that are back sooner than running them apart would cost. Pure.

Rows that run together share one pass over the weights. Where two groups of sessions take turns, one on its way while
the other is computed, each waits through a pass of the other's that it could have shared. So a batch may begin a
little later, for those whose results have just gone out, if they will be back in a fraction of the time that a pass
takes: then the wait is shorter than what it saves, and it saves that for all.

That they will is not hoped but seen: a session is expected if of its last TRIPS trips, from a result that goes out to
the step that follows, all but one took no longer than our patience. It is waited for twice as long as the longest of
those, and never beyond the patience. `now` is in seconds, on any clock that does not jump.
"""

from __future__ import annotations

from collections import deque
from typing import Final

# Who means to hold others up by being late does it in two of so many steps and one, at most.
TRIPS: Final = 4
# What comes at the same time as before, comes a little later now and then.
SLACK: Final = 2.0


class Company:
    """Who is on its way; `patience_s` is how long anybody is waited for, and may change at any time."""

    def __init__(self, patience_s: float = 0.0) -> None:
        self.patience_s = patience_s
        self._left: dict[int, float] = {}  # by session, when its last result went out
        self._trips: dict[int, deque[float]] = {}
        self._due: dict[int, float] = {}  # of those who are expected, until when

    def leaves(self, session: int, now: float) -> None:
        """The result of a short step has gone out, and nothing else of its session waits here."""
        self._left[session] = now
        trips = self._trips.get(session, ())
        if len(trips) == TRIPS:
            usual = sorted(trips)[-2]
            if usual <= self.patience_s:
                self._due[session] = now + min(self.patience_s, SLACK * usual)

    def comes(self, session: int, now: float) -> None:
        """A step of the session is here."""
        self._due.pop(session, None)
        left = self._left.pop(session, None)
        if left is not None:
            self._trips.setdefault(session, deque(maxlen=TRIPS)).append(now - left)

    def forget(self, session: int) -> None:
        """It is over."""
        for known in (self._left, self._trips, self._due):
            known.pop(session, None)

    @property
    def expected(self) -> bool:
        """Whether anybody is."""
        return bool(self._due)

    def until(self, now: float) -> float:
        """When the last of those who are expected has to be here; `now`, if nobody is any more."""
        self._due = {session: due for session, due in self._due.items() if due > now}
        return max(self._due.values(), default=now)
