"""Streams that wait for something to come; bounded, and shared among origins."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import trio


class Lobby:
    """At most `most` streams wait at once: beyond, the oldest of the origin that has the most gives way."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._waiting: dict[trio.CancelScope, str] = {}  # in order of coming

    def __len__(self) -> int:
        return len(self._waiting)

    @contextmanager
    def wait(self, origin: str, within_s: float) -> Iterator[trio.CancelScope]:
        """A scope that is cancelled after `within_s`, or earlier to make room for another."""
        scope = trio.CancelScope(deadline=trio.current_time() + within_s)
        self._waiting[scope] = origin
        if len(self._waiting) > self._most:
            self._oldest_of_the_crowd().cancel()
        try:
            with scope:
                yield scope
        finally:
            self._waiting.pop(scope, None)

    def _oldest_of_the_crowd(self) -> trio.CancelScope:
        crowd, _ = Counter(self._waiting.values()).most_common(1)[0]
        oldest = next(scope for scope, origin in self._waiting.items() if origin == crowd)
        del self._waiting[oldest]
        return oldest
