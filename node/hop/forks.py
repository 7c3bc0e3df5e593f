"""Whether a session still has what another is to begin with. Pure."""

from __future__ import annotations

from collections import deque
from typing import Final

from protocol import limits
from protocol.errors import SwarmError

# Steps that are remembered: a client may have so many on their way when it forks.
REMEMBERED: Final = limits.STEPS_IN_FLIGHT


class CannotFork(SwarmError):
    """Another session cannot begin with what was asked for."""


class History:
    """Where the latest steps of a session began, in the order of computing; those below `first` are another's."""

    def __init__(self, first: int = 0) -> None:
        self._known_from = first
        self._latest: deque[tuple[int, int]] = deque()

    def note(self, number: int, position: int) -> None:
        """Step `number` is about to be computed, or another piece of it."""
        if self._latest and self._latest[-1][0] == number:
            return
        if len(self._latest) == REMEMBERED:
            self._known_from = self._latest.popleft()[0] + 1
        self._latest.append((number, position))

    def stands(self, after: int, length: int) -> bool:
        """Whether the first `length` positions are as the steps below `after` left them; False where in doubt."""
        later = (position for number, position in self._latest if number >= after)
        return after >= self._known_from and all(position >= length for position in later)
