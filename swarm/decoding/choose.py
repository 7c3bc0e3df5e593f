"""Choosing a token from a row, exactly; or saying that the row does not hold enough to do so. Pure."""

from __future__ import annotations

import math
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


@dataclass(frozen=True, slots=True, eq=False)
class Left:
    """What cuts leave of a row, in falling order of score: entries from the first, and maybe unseen ids behind.

    mass     the running sum of exp(score - best), by entry
    certain  how many entries, from the first, stand before all unseen ids
    tail     brackets the mass of the unseen ids that are left
    """

    at: NDArray[np.int64]  # [n], places in the row
    mass: NDArray[np.float64]  # [n]
    certain: int
    tail: tuple[float, float]

    def first(self, count: int) -> Left:
        """The `count` first entries and nothing else; they stand before all unseen ids."""
        return Left(self.at[:count], self.mass[:count], count, (0.0, 0.0))

    @property
    def known(self) -> bool:
        """Whether no unseen id is left."""
        return self.tail == (0.0, 0.0)

    @property
    def totals(self) -> tuple[float, float]:
        """Brackets the mass of all that is left."""
        return float(self.mass[-1]) + self.tail[0], float(self.mass[-1]) + self.tail[1]


def choose_best(row: Row) -> Choice | None:
    """The id of the highest score; of equal ones the lowest. The row holds one id that no processor touches.

    None where ids were sifted out, and an unseen one may be as good.
    """
    if row.sifted and not row.certain and not row.whole:
        return None
    best = np.flatnonzero(row.scores == row.scores[0])
    at = int(best[np.argmin(row.ids[best])])
    return Choice(int(row.ids[at]), float(row.logprobs[at]), 1)


def choose_sampled(row: Row, sampling: Sampling, u: float) -> Choice | None:
    """The id at `u` in [0, 1) of the distribution that the cuts leave, in falling order of score.

    None if the row holds too few candidates to tell. Rows of the same logits that hold enough give the
    same id, however many candidates they hold.
    """
    if row.sifted and not row.certain and not row.whole:
        return None
    left = cut(row, sampling)
    if left is None:
        return None
    cuts = sampling.top_p < 1 or sampling.min_p or sampling.typical_p < 1
    depth = (int(left.at[-1]) if cuts else int(np.searchsorted(left.mass, 0.5 * left.totals[1]))) + 1
    at = _reaching(left, u, "right")
    if at is None:
        return None
    place = int(left.at[at])
    return Choice(int(row.ids[place]), float(row.logprobs[place]), depth)


def cut(row: Row, sampling: Sampling) -> Left | None:
    """What top-k, top-p, min-p and typical-p leave, in this order; None if the row holds too little to tell."""
    mass = np.cumsum(np.exp(row.scores.astype(np.float64) - float(row.scores[0])))
    everything = Left(np.arange(len(mass)), mass, row.certain, row.tail)
    left = _top_k(everything, row, sampling.top_k) if sampling.top_k else everything
    if left is not None and sampling.top_p < 1:
        last = _reaching(left, sampling.top_p, "left")
        left = None if last is None else left.first(last + 1)
    if left is not None and sampling.min_p:
        left = _min_p(left, row, sampling.min_p)
    if left is not None and sampling.typical_p < 1:
        left = _typical_p(left, row, sampling.typical_p)
    return left


def _top_k(left: Left, row: Row, k: int) -> Left | None:
    """All that score as the k-th does, or better, as in transformers."""
    if k > len(row.scores) and not row.whole:
        return None
    kth = row.scores[min(k, len(row.scores)) - 1]
    if not (kth > row.bound or row.whole):
        return None
    return left.first(int(np.searchsorted(-row.scores, -kth, side="right")))


def _min_p(left: Left, row: Row, share: float) -> Left | None:
    """All at least `share` times as probable as the best."""
    least = float(row.scores[0]) + math.log(share)
    if not left.known and row.bound >= least:
        return None
    return left.first(int((row.scores[left.at].astype(np.float64) >= least).sum()))


def _typical_p(left: Left, row: Row, share: float) -> Left | None:
    """Those whose surprise is nearest to what is to be expected, until they reach `share`; needs all there is."""
    if not left.known:
        return None
    shares = np.diff(left.mass, prepend=0.0) / left.mass[-1]
    surprise = -np.log(np.maximum(shares, np.finfo(np.float64).tiny))
    distance = np.abs(surprise - (shares * surprise).sum())
    order = np.argsort(distance, kind="stable")
    reached = min(int((np.cumsum(shares[order]) < share).sum()), len(order) - 1)
    kept = np.flatnonzero(distance <= distance[order[reached]])
    return Left(left.at[kept], np.cumsum(shares[kept]), len(kept), (0.0, 0.0))


def _reaching(left: Left, share: float, side: Literal["left", "right"]) -> int | None:
    """The first entry where the running mass reaches ("left") or passes ("right") a share of the total; or None."""
    mass, end = left.mass, float(left.mass[-1])
    last = int(np.searchsorted(mass, end))  # rounding must not lead to an entry of no weight behind it
    # What lies past all entries is an unseen id's, also where every entry stands before those.
    found = {
        min(int(np.searchsorted(mass, share * total, side)), last) if share * total <= end else len(mass)
        for total in left.totals
    }
    at = found.pop()
    return at if not found and at < left.certain else None
