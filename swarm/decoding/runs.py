"""Runs of tokens: what two sequences begin with, and what followed a run the last time.

The latter makes drafts out of the tokens themselves, without a model (prompt lookup).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

# A run of one token says too little of what follows it.
_SHORTEST: Final = 2
_FIRST_HELD: Final = 1024


def common_prefix(held: Sequence[int], wanted: Sequence[int]) -> int:
    """How many of the first tokens are the same."""
    shorter = min(len(held), len(wanted))
    return next((index for index in range(shorter) if held[index] != wanted[index]), shorter)


class Runs:
    """What followed a run of a few tokens the last time. Takes four bytes for each token."""

    def __init__(self, longest: int) -> None:
        """longest: runs of so many tokens are looked for first, then shorter ones."""
        self._longest = longest
        self._held: NDArray[np.int32] = np.empty(0, np.int32)
        self._taken = 0

    def after(self, tokens: Sequence[int], ahead: Sequence[int], most: int) -> tuple[int, ...]:
        """`most` tokens that followed the run with which `tokens` and `ahead` end, over and over; none, if it is new.

        `tokens` are those of the call before, and more, and alone are looked through; `ahead` may turn out wrong.
        """
        self._take(tokens)
        count, size = len(tokens), min(self._longest, len(tokens) + len(ahead))
        last = [*tokens[max(0, count - size) :], *ahead][-size:]
        # Where a run may end: with a token behind it.
        ends = np.flatnonzero(self._held[: count - 1] == last[-1]) + 1 if last else np.empty(0, np.intp)
        for back in range(2, size + 1):
            longer = ends[ends >= back]
            longer = longer[self._held[longer - back] == last[-back]]
            if not len(longer):
                size = back - 1
                break
            ends = longer
        if size < _SHORTEST:
            return ()
        begin, whole = int(ends[-1]), count + len(ahead)
        places = (begin + at % (whole - begin) for at in range(most))
        return tuple(tokens[place] if place < count else ahead[place - count] for place in places)

    def _take(self, tokens: Sequence[int]) -> None:
        if len(tokens) > len(self._held):
            grown = np.empty(max(2 * len(self._held), len(tokens), _FIRST_HELD), np.int32)
            grown[: self._taken] = self._held[: self._taken]
            self._held = grown
        self._held[self._taken : len(tokens)] = tokens[self._taken :]
        self._taken = len(tokens)
