"""How much may be done again. Pure."""

from __future__ import annotations


class Pace:
    """`burst` at once, then `per_s` a second. `now`: seconds on a clock that does not jump."""

    def __init__(self, per_s: float, burst: float) -> None:
        self._per_s = per_s
        self._burst = burst
        self._left = burst
        self._at = 0.0

    def wait_s(self, amount: float, now: float) -> float:
        """How long to wait before `amount` more is done; it counts as done from now on."""
        self._left = min(self._burst, self._left + (now - self._at) * self._per_s) - amount
        self._at = now
        return max(0.0, -self._left / self._per_s)
