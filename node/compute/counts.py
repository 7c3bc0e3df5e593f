"""What a node has done since it started, counted for its owner. Pure: of strangers nothing is in it but numbers."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Final

_BATCH_S: Final = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
_QUEUE_S: Final = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0)
_ROWS: Final = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0)
_SESSIONS: Final = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0)


class Histogram:
    """How many values were at most each of `bounds`, which rise; and their sum."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        self.sum = 0.0
        self._counts = [0] * (len(self.bounds) + 1)

    def observe(self, value: float) -> None:
        """One more."""
        self._counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    @property
    def cumulative(self) -> list[int]:
        """Of each bound, how many were at most that; the last of all."""
        return list(accumulate(self._counts))


@dataclass(slots=True)
class Counts:
    """Kept in the event loop; times in seconds."""

    steps: int = 0
    rows: int = 0  # of tokens, in all batches
    opened: int = 0  # sessions
    refused: Counter[str] = field(default_factory=Counter)  # by the code of `protocol.messages.Refused`
    gave_way: int = 0  # sessions that lost their seats to others
    batch_s: Histogram = field(default_factory=lambda: Histogram(_BATCH_S))
    batch_rows: Histogram = field(default_factory=lambda: Histogram(_ROWS))
    batch_sessions: Histogram = field(default_factory=lambda: Histogram(_SESSIONS))
    queue_s: Histogram = field(default_factory=lambda: Histogram(_QUEUE_S))

    def batch(self, rows: int, sessions: int, seconds: float) -> None:
        """One has been computed."""
        self.rows += rows
        self.batch_rows.observe(rows)
        self.batch_sessions.observe(sessions)
        self.batch_s.observe(seconds)

    def step(self, queue_s: float) -> None:
        """One is done; it waited so long before it was computed."""
        self.steps += 1
        self.queue_s.observe(queue_s)
