"""How many tokens to draft for one step, by what steps cost and how much of the drafts held. Pure.

Leviathan et al. 2023 (arXiv 2211.17192), section 3: where each of k drafted tokens holds with probability p, a step
gives 1 + p + … + p^k tokens. It costs what one row costs, and a part of that for each row more: both are learnt.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

# Drafting has to promise so much more than a step without: what is learnt is noisy, and nobody is to lose by it.
_GAIN: Final = 1.05
# The same of drafting while steps are under way, whose cost to others is not seen.
_AHEAD_GAIN: Final = 2.0
# Weight of what is newest, in means of times and of what holds.
_NEWEST: Final = 0.2
# Steps without drafts that are timed before the first with.
_TIMED: Final = 2
# Where drafting does not pay, one short draft in so many steps looks whether that has changed.
_PROBE_EVERY: Final = 32
_PROBE: Final = 2
# Before anything is known.
_FIRST: Final = 4
_HOLDS: Final = 0.7


@dataclass(slots=True)
class Pace:
    """Of one source of drafts; `most` tokens are drafted at most."""

    most: int
    holds: float = _HOLDS  # how likely a drafted token is what the model says, if those before it were
    one_s: float = 0.0  # a step with a single row
    row_s: float = 0.0  # each row more
    draft_s: float = 0.0  # each drafted token
    _timed: int = 0
    _verified: int = 0
    _idle: int = 0

    def length(self) -> int:
        """How many tokens to draft now."""
        if self._timed < _TIMED:
            return 0
        if not self._verified:
            return min(_FIRST, self.most)
        if best := self._best():
            self._idle = 0
            return best
        self._idle += 1
        if self._idle < _PROBE_EVERY:
            return 0
        self._idle = 0
        return min(_PROBE, self.most)

    def beyond(self, ahead: int) -> int:
        """How many tokens to draft now behind `ahead` ones that are being verified.

        If all of these hold, and the first behind them, a step is saved. Else what is drafted now is for nothing, and
        in the way of what is sent then.
        """
        best = self._best() if self._verified else 0
        holds = self.holds ** (ahead + 1)
        wasted = best * (self.row_s + self.draft_s)
        return best if holds * self.one_s > _AHEAD_GAIN * (1 - holds) * wasted else 0

    @property
    def promise(self) -> float:
        """Tokens in a second, with drafts from here or without."""
        return max(self._rate(length) for length in range(self.most + 1))

    def took(self, drafted: int, seconds: float) -> None:
        """A step with so many drafted tokens, and one that is not, took so long."""
        if not drafted:
            self.one_s = self._mean(self.one_s, seconds) if self._timed else seconds
            self._timed += 1
            return
        each = max(0.0, seconds - self.one_s) / drafted
        self.row_s = self._mean(self.row_s, each) if self._verified else each
        self._verified += 1

    def drafting_took(self, drafted: int, seconds: float) -> None:
        """So many tokens were drafted in that time."""
        each = seconds / drafted
        self.draft_s = self._mean(self.draft_s, each) if self.draft_s else each

    def held(self, drafted: int, kept: int) -> None:
        """Of so many drafted tokens the first `kept` were what the model said."""
        for held in (*(1.0,) * kept, *(0.0,) * (kept < drafted)):
            self.holds = self._mean(self.holds, held)

    def _best(self) -> int:
        """The length that gives most by what is known; 0, if it is not clearly more than without."""
        best = max(range(self.most + 1), key=self._rate)
        return best if self._rate(best) >= _GAIN * self._rate(0) else 0

    def _rate(self, drafted: int) -> float:
        """Tokens in a second."""
        given = sum(self.holds**each for each in range(drafted + 1))
        return given / max(1e-9, self.one_s + drafted * (self.row_s + self.draft_s))

    @staticmethod
    def _mean(before: float, new: float) -> float:
        return before + _NEWEST * (new - before)
