"""One row of candidates as a strategy sees it: scores after all processors and temperature, and what is not known."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from protocol import limits
from protocol.candidates import Candidates, Want
from protocol.errors import ConfigError
from swarm.decoding.asks import Best
from swarm.decoding.edits import Edits


@dataclass(frozen=True, slots=True, eq=False)
class Row:
    """The known ids in falling order of score. No unseen id scores above `bound`.

    Where processors left nothing of what is known, the scores are -inf, and what is left is unseen.

    `tail` brackets the sum of exp(score - scores[0]) over the unseen ids: the head's log-sum-exp is an fp32
    number, so what it leaves for them is known only within its rounding.
    """

    ids: NDArray[np.int64]  # [n]
    scores: NDArray[np.float32]  # [n], after processors and temperature
    logprobs: NDArray[np.float64]  # [n], of logits / temperature, before any processor
    bound: float
    tail: tuple[float, float]
    sifted: bool = False  # ids were taken out that nobody named, so that the best may be unseen

    @property
    def certain(self) -> int:
        """How many entries, from the first, are known to stand before every unseen id."""
        return int(np.searchsorted(-self.scores, -self.bound, side="left"))

    @property
    def whole(self) -> bool:
        """Whether no id is unseen."""
        return self.bound == -np.inf


def want_row(edits: Edits, width: int, temperature: float, vocab_size: int, *, again: bool = False) -> Want:
    """What to ask for so that, of the ids that no processor touches, the `width` best are known; 0: everything.

    It is everything too where there are more ids to name than the protocol takes, or hardly fewer than all; and where
    the edits sift, unless whoever asks does so `again` when nothing of what came is left.
    """
    named = edits.named
    top = width if edits.by_name else width + len(named)
    if (
        not width
        or (edits.sifts and not again)
        or top + len(named) >= vocab_size
        or len(named) > limits.ASKED_IDS
    ):
        return Want(top=0, temperature=temperature)
    return Want(top=top, ids=tuple(named.tolist()), temperature=temperature)


def read_row(
    found: Candidates, want: Want, edits: Edits, vocab_size: int, *, at: int = 0, normalised: bool = False
) -> Row:
    """Row `at` of what answers a `want` of `want_row`, as `swarm.session.outputs` has checked.

    normalised: processors are given log-probabilities in place of logits, as in transformers' beam search.
    Raises: ConfigError, where processors leave no token.
    """
    ids, logits = found.ids[at].astype(np.int64), found.logits[at]
    divisor, lse = np.float32(want.temperature), float(found.lse[at])
    bound = -math.inf
    if want.top:
        bound = float(logits[-1] / divisor) - (lse if normalised else 0.0)
        # Asked ids that are among the best as well are counted once.
        named = np.asarray(want.ids, np.int64)
        others = ~np.isin(ids, named)
        ids = np.concatenate([ids[others], named])
        logits = np.concatenate([logits[others], found.asked[at]])
    if len(ids) == vocab_size or edits.by_name:
        bound = -math.inf
    logprobs = (logits / divisor).astype(np.float64) - lse
    with np.errstate(over="ignore"):
        plain = logprobs.astype(np.float32) if normalised else logits
        scores = edits.apply(ids, plain) / (np.float32(1) if normalised else divisor)
    scores = np.minimum(scores, np.finfo(np.float32).max)
    # Processors disturb the order of the answer. Of equal scores the lower id is first.
    disturbed = len(edits.named) or want.ids or edits.sifts
    order = np.lexsort((ids, -scores)) if disturbed else np.arange(len(ids))
    best = float(scores[order[0]])
    if best == -math.inf and bound == -math.inf:
        raise ConfigError("no token is left to go on with: allowed, banned and the like exclude all")
    tail = (0.0, 0.0)
    if bound != -math.inf:
        # A head sums in fp32 and rounds to fp32: some units in the last place of the result, and some of the sum.
        seen, error = float(np.exp(np.minimum(logprobs, 1.0)).sum()), 1e-5 + 4 * abs(lse) * 2.0**-23
        scale = math.exp(min((0.0 if normalised else lse) - best, 700.0))
        most = (vocab_size - len(ids)) * math.exp(min(bound - best, 0.0))
        most = min(max(0.0, 1 + error - seen) * scale, most)
        # Of the unseen ids all may be out.
        tail = (0.0 if edits.sifts else min(max(0.0, 1 - error - seen) * scale, most), most)
    return Row(ids[order], scores[order], logprobs[order], bound, tail, edits.sifts)


def best_of_row(found: Candidates, want: Want, count: int, at: int = 0) -> Best:
    """The `count` best ids before any processor, and their log-probabilities; fewer, if fewer were asked for."""
    logits = found.logits[at, :count] / np.float32(want.temperature)
    logprobs = logits.astype(np.float64) - float(found.lse[at])
    return tuple(zip(found.ids[at, :count].tolist(), logprobs.tolist(), strict=True))
