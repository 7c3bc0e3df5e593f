"""Choosing a token from a row, exactly; or saying that the row does not hold enough to do so."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from swarm.decoding.row import Row
from swarm.decoding.sampling import Sampling


@dataclass(frozen=True, slots=True)
class Choice:
    """A token, and how many of the best candidates it took to settle on one (on most draws, if it varies)."""

    token: int
    logprob: float
    depth: int


def choose_best(row: Row) -> Choice:
    """The id of the highest score; of equal ones the lowest. The row holds one id that no penalty touches."""
    best = np.flatnonzero(row.scores == row.scores[0])
    at = int(best[np.argmin(row.ids[best])])
    return Choice(int(row.ids[at]), float(row.logprobs[at]), 1)


def choose_sampled(row: Row, sampling: Sampling, u: float) -> Choice | None:
    """The id at `u` in [0, 1) of the distribution that top-k and top-p leave, in falling order of score.

    None if the row holds too few candidates to tell. Rows of the same logits that hold enough give the
    same id, however many candidates they hold.
    """
    mass = np.cumsum(np.exp(row.scores.astype(np.float64) - float(row.scores[0])))
    certain, tail = row.certain, row.tail
    if sampling.top_k:
        kept = _top_k(row, sampling.top_k)
        if kept is None:
            return None
        mass, certain, tail = mass[:kept], kept, (0.0, 0.0)
    totals = [float(mass[-1]) + most for most in tail]
    depth = int(np.searchsorted(mass, 0.5 * totals[1])) + 1
    if sampling.top_p < 1:
        last = _reaching(mass, [sampling.top_p * total for total in totals], certain, "left")
        if last is None:
            return None
        mass, totals, depth = mass[: last + 1], [float(mass[last])], last + 1
    at = _reaching(mass, [u * total for total in totals], certain, "right")
    return None if at is None else Choice(int(row.ids[at]), float(row.logprobs[at]), depth)


def _top_k(row: Row, k: int) -> int | None:
    """How many entries top-k leaves: all that score as the k-th does, as in transformers."""
    whole = row.bound == -np.inf
    if k > len(row.scores) and not whole:
        return None
    kth = row.scores[min(k, len(row.scores)) - 1]
    if not (kth > row.bound or whole):
        return None
    return int(np.searchsorted(-row.scores, -kth, side="right"))


def _reaching(
    mass: NDArray[np.float64], targets: list[float], certain: int, side: Literal["left", "right"]
) -> int | None:
    """The first entry where the running mass reaches ("left") or passes ("right") the targets; or None."""
    end = float(mass[-1])
    last = int(np.searchsorted(mass, end))  # rounding must not lead to an entry of no weight behind it
    # What lies past all entries is an unseen id's, also where every entry stands before those.
    found = {
        min(int(np.searchsorted(mass, target, side)), last) if target <= end else len(mass)
        for target in targets
    }
    at = found.pop()
    return at if not found and at < certain else None
