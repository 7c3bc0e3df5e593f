"""Which datagram size a path carries: a search that is told what happened and says what to try. Pure.

After RFC 8899 (DPLPMTUD): probes are padded PINGs, a lost probe is no sign of congestion, and a size counts
only when a probe of it was acknowledged. There are a few sizes that occur, so the search is a list.
"""

from __future__ import annotations

BASE = 1200  # every path that QUIC runs on carries this (RFC 9000, section 14)
# Ethernet less IPv6 and UDP headers, with room for a tunnel's 20; jumbo frames less headers; loopback.
CANDIDATES = (1452, 8900, 16_000)
TRIES = 3  # a probe may be lost like any packet
RETRY_AFTER_S = 600.0  # a path changes rarely (RFC 8899, section 5.1.1)


class MtuSearch:
    """The state of one path's search."""

    def __init__(self, limit: int = CANDIDATES[-1]) -> None:
        self.current = BASE
        self._limit = limit
        self._sizes = [size for size in CANDIDATES if size <= limit]
        self._tried = 0
        self._in_flight: int | None = None
        self._again_at = 0.0

    def next_probe(self, now: float) -> int | None:
        """The size to probe now, if any; counts as sent."""
        if self._in_flight is not None:
            return None
        if not self._sizes and self._again_at and now >= self._again_at:
            self._again_at = 0.0
            self._sizes = [size for size in CANDIDATES if self.current < size <= self._limit]
        if not self._sizes:
            return None
        self._in_flight = self._sizes[0]
        self._tried += 1
        return self._in_flight

    def acknowledged(self, size: int) -> None:
        """A probe of `size` arrived."""
        if size == self._in_flight:
            self._in_flight = None
            self._tried = 0
            self._sizes = [candidate for candidate in self._sizes if candidate > size]
            self.current = max(self.current, size)

    def lost(self, size: int, now: float) -> None:
        """A probe of `size` was lost."""
        if size == self._in_flight:
            self._in_flight = None
            if self._tried >= TRIES:
                self._give_up(now)

    def refused(self, now: float) -> None:
        """The system or the peer refuses the size of the last probe: what passed before still does."""
        self._in_flight = None
        self._give_up(now)

    def too_big(self, now: float) -> None:
        """What has passed does so no more, or large packets vanish: back to what always passes."""
        self.current = BASE
        self._in_flight = None
        self._give_up(now)

    def _give_up(self, now: float) -> None:
        self._tried = 0
        self._sizes = []
        self._again_at = now + RETRY_AFTER_S
