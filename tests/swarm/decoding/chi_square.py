"""How well what was drawn agrees with what should be: Pearson's chi-square test, over whole answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

K = TypeVar("K", bound=Hashable)
# From the tokens so far to the probability of each next one.
Next = Callable[[Sequence[int]], NDArray[np.float64]]

# A bin that is expected less often says too little: it is merged with others.
LEAST = 5.0


def p_value(seen: Counter[K], shares: Mapping[K, float]) -> float:
    """How likely counts are that fit `shares` as badly as these, or worse; 0 if one came up that cannot.

    What is expected fewer than LEAST times is merged with others, by what is expected alone.
    """
    if any(not shares.get(key) for key in seen):
        return 0.0
    bins = [(0.0, 0)]
    for key in sorted(shares, key=lambda key: -shares[key]):
        if bins[-1][0] >= LEAST:
            bins.append((0.0, 0))
        expected, count = bins[-1]
        bins[-1] = (expected + seen.total() * shares[key], count + seen[key])
    if bins[-1][0] < LEAST:
        (expected, count), (more, others) = bins[-2:]
        bins[-2:] = [(expected + more, count + others)]
    statistic = sum((count - expected) ** 2 / expected for expected, count in bins)
    half = torch.tensor([len(bins) - 1, statistic], dtype=torch.float64) / 2
    return float(torch.special.gammaincc(half[0], half[1]))


def answers_of(
    following: Next, prompt: Sequence[int], new: int, eos: Collection[int] = ()
) -> dict[tuple[int, ...], float]:
    """Every answer of at most `new` tokens, up to its end, with its probability."""
    found: dict[tuple[int, ...], float] = {}

    def follow(answer: tuple[int, ...], share: float) -> None:
        if len(answer) == new or (answer and answer[-1] in eos):
            found[answer] = share
            return
        each = following([*prompt, *answer])
        for token in np.flatnonzero(each).tolist():
            follow((*answer, token), share * float(each[token]))

    follow((), 1.0)
    return found
