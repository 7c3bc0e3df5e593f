"""One row of candidates as a sampler sees it: scores after penalty and temperature, and what is not known."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from protocol.candidates import Candidates, Want
from swarm.decoding.sampling import Sampling


@dataclass(frozen=True, slots=True, eq=False)
class Row:
    """The known ids in falling order of score. No unseen id scores above `bound`.

    `tail` brackets the sum of exp(score - scores[0]) over the unseen ids: the head's log-sum-exp is an fp32
    number, so what it leaves for them is known only within its rounding.
    """

    ids: NDArray[np.int64]  # [n]
    scores: NDArray[np.float32]  # [n], after penalty and temperature
    logprobs: NDArray[np.float64]  # [n], of logits / temperature, before any penalty
    bound: float
    tail: tuple[float, float]

    @property
    def certain(self) -> int:
        """How many entries, from the first, are known to stand before every unseen id."""
        return int(np.searchsorted(-self.scores, -self.bound, side="left"))


def read_row(
    candidates: Candidates, want: Want, window: tuple[int, ...], sampling: Sampling, vocab_size: int
) -> Row:
    """The row that answers `want`, as `swarm.session.outputs` has checked; ids in `window` are penalised.

    `want.ids` is the window, or empty where the whole vocabulary is asked for (`want.top` is 0).
    """
    ids, logits = candidates.ids[0].astype(np.int64), candidates.logits[0]
    touched = np.isin(ids, np.asarray(window, np.int64)) if window else np.zeros(len(ids), bool)
    bound = -math.inf
    if want.top:
        bound = float(logits[-1] / np.float32(sampling.divisor))
        # Asked ids that are among the best as well are counted once.
        ids = np.concatenate([ids[~touched], np.asarray(want.ids, np.int64)])
        logits = np.concatenate([logits[~touched], candidates.asked[0]])
        touched = np.arange(len(ids)) >= len(ids) - len(want.ids)
    if len(ids) == vocab_size:
        bound = -math.inf
    plain = logits / np.float32(sampling.divisor)
    scores = np.where(touched, _penalise(logits, sampling), plain)
    logprobs = plain.astype(np.float64) - float(candidates.lse[0])
    # Penalties disturb the order of the answer. Of equal scores the lower id is first.
    order = np.lexsort((ids, -scores)) if touched.any() else np.arange(len(ids))
    tail = _tail(logprobs, float(candidates.lse[0]), bound, float(scores[order[0]]), vocab_size)
    return Row(ids[order], scores[order], logprobs[order], bound, tail)


def _penalise(logits: NDArray[np.float32], sampling: Sampling) -> NDArray[np.float32]:
    # The penalty comes before the temperature, in fp32, as in transformers' RepetitionPenaltyLogitsProcessor.
    penalty = np.float32(sampling.repetition_penalty)
    punished: NDArray[np.float32] = np.where(logits < 0, logits * penalty, logits / penalty)
    return punished / np.float32(sampling.divisor)


def _tail(
    logprobs: NDArray[np.float64], lse: float, bound: float, best: float, vocab_size: int
) -> tuple[float, float]:
    unseen = vocab_size - len(logprobs)
    if unseen == 0:
        return 0.0, 0.0
    seen = float(np.exp(np.minimum(logprobs, 1.0)).sum())
    # A head sums in fp32 and rounds to fp32: some units in the last place of the result, and some of the sum.
    error = 1e-5 + 4 * abs(lse) * 2.0**-23
    scale = math.exp(min(lse - best, 700.0))
    most = min(max(0.0, 1 + error - seen) * scale, unseen * math.exp(min(bound - best, 0.0)))
    least = min(max(0.0, 1 - error - seen) * scale, most)
    return least, most
