"""Runs of tokens: what two sequences begin with, and what followed a run the last time.

The latter makes drafts out of the tokens themselves, without a model (prompt lookup).
"""

from __future__ import annotations

from collections.abc import Sequence

# A run of one token says too little of what follows it.
_SHORTEST = 2


def common_prefix(held: Sequence[int], wanted: Sequence[int]) -> int:
    """How many of the first tokens are the same."""
    shorter = min(len(held), len(wanted))
    return next((index for index in range(shorter) if held[index] != wanted[index]), shorter)


class Runs:
    """Where each run of a few tokens ended the last time. Takes memory in proportion to the tokens."""

    def __init__(self, longest: int) -> None:
        """longest: runs of so many tokens are looked for first, then shorter ones."""
        self._longest = longest
        self._ends: dict[tuple[int, ...], int] = {}
        self._taken = 0

    def after(self, tokens: Sequence[int], most: int) -> tuple[int, ...]:
        """`most` tokens that followed the run with which `tokens` end, over and over; none, if it is new.

        `tokens` are those of the call before, and more.
        """
        for end in range(
            max(self._taken, _SHORTEST), len(tokens)
        ):  # the run at the very end is yet to be followed
            for size in range(_SHORTEST, min(self._longest, end) + 1):
                self._ends[tuple(tokens[end - size : end])] = end
        self._taken = len(tokens)
        for size in range(min(self._longest, len(tokens)), _SHORTEST - 1, -1):
            begin = self._ends.get(tuple(tokens[len(tokens) - size :]))
            if begin is not None:
                return tuple(tokens[begin + at % (len(tokens) - begin)] for at in range(most))
        return ()
