"""What the processors do to the logits of single ids, given the tokens so far; pure.

Cuts (top-k and the like) come after them, in `cuts`. Edits change few ids, whose logits are asked for by name; so the
order of all others stays that of the head.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

import numpy as np
from numpy.typing import NDArray

from protocol import limits
from protocol.errors import ConfigError
from swarm.decoding.grammar import Guide, Mask
from swarm.decoding.sampling import Sampling

Ids = NDArray[np.int64]
Scores = NDArray[np.float32]

NO_IDS: Final = np.empty(0, np.int64)


@dataclass(frozen=True, slots=True, eq=False)
class Edit:
    """One processor at one place: which ids it changes, rising, and their scores after it."""

    ids: Ids
    change: Callable[[Scores], Scores]


@dataclass(frozen=True, slots=True, eq=False)
class Edits:
    """All processors at one place.

    ids    rising: those whose scores change, of those that are asked for by name
    only   the ids, rising, that are left at all; None: any
    later  which ids are left, where that is asked of a grammar: once the row is there
    """

    ids: Ids
    edits: tuple[Edit, ...]
    only: Ids | None = None
    later: Callable[[], Mask] | None = None

    @property
    def named(self) -> Ids:
        """The ids, rising, whose logits must be known, wherever they stand."""
        return self.only if self.only is not None and self.by_name else self.ids

    @property
    def by_name(self) -> bool:
        """Whether all ids that are left are asked for."""
        return self.only is not None and len(self.only) <= limits.ASKED_IDS

    @property
    def sifts(self) -> bool:
        """Whether those that are left are too many to ask for, so that the best of a row may not be among them."""
        return self.later is not None or (self.only is not None and not self.by_name)

    def known(self) -> Edits:
        """The same when all rows are there: nothing is left to be asked of a grammar."""
        return self if self.later is None else _limited(self.edits, np.flatnonzero(self.later()))

    def apply(self, ids: Ids, scores: Scores) -> Scores:
        """The scores of ids, in any order and each once, after all processors; -inf is out."""
        changed = scores.copy()
        if self.edits:
            order = np.argsort(ids)
            ranked = ids[order]
            for edit in self.edits:
                at = np.searchsorted(ranked, edit.ids)
                there = (at < len(ranked)) & (ranked[np.minimum(at, len(ranked) - 1)] == edit.ids)
                where = order[at[there]]
                whole = np.zeros(len(edit.ids), np.float32)
                whole[there] = changed[where]
                changed[where] = edit.change(whole)[there]
        if self.only is not None:
            changed[~np.isin(ids, self.only)] = -np.inf
        if self.later is not None:
            changed[~self.later()[ids]] = -np.inf
        return changed


def edits_of(sampling: Sampling, tokens: Sequence[int], prompt: int, eos: Collection[int]) -> Edits:
    """What `sampling` does after `tokens`, of which the first `prompt` are the prompt's.

    Raises: ConfigError, where a function allows no token.
    """
    found = tuple(edit for edit in _all(sampling, tokens, prompt, eos) if len(edit.ids))
    allowed = sampling.allowed
    if isinstance(allowed, Guide):
        return Edits(_touched(found), found, later=partial(allowed.mask, tuple(tokens)))
    if allowed is None:
        return Edits(_touched(found), found)
    only = _ids(allowed(tokens) if callable(allowed) else allowed)
    if not len(only):
        raise ConfigError(f"allowed names no token after {len(tokens)} tokens: nothing can follow")
    return _limited(found, only)


def _limited(edits: tuple[Edit, ...], only: Ids) -> Edits:
    return Edits(np.intersect1d(_touched(edits), only), edits, only)


def _touched(edits: Sequence[Edit]) -> Ids:
    return np.unique(np.concatenate([edit.ids for edit in edits])) if edits else NO_IDS


def _all(sampling: Sampling, tokens: Sequence[int], prompt: int, eos: Collection[int]) -> list[Edit]:
    """In transformers' order."""
    found = []
    if sampling.logit_bias:
        found.append(_bias(sampling))
    if sampling.repetition_penalty != 1:
        found.append(_repetition(np.asarray(tokens, np.int64), sampling.repetition_penalty))
    if sampling.presence_penalty or sampling.frequency_penalty:
        found.append(_occurrence(np.asarray(tokens[prompt:], np.int64), sampling))
    if sampling.no_repeat_ngram:
        found.append(_without(_completions(np.asarray(tokens, np.int64), sampling.no_repeat_ngram)))
    if len(tokens) - prompt < sampling.min_new_tokens:
        found.append(_without(_ids(eos)))
    if sampling.banned:
        found.append(_without(_ids(sampling.banned)))
    return found


def _bias(sampling: Sampling) -> Edit:
    pairs = sorted(sampling.logit_bias.items())
    bias = np.asarray([value for _, value in pairs], np.float32)
    return Edit(np.asarray([token for token, _ in pairs], np.int64), lambda scores: scores + bias)


def _repetition(tokens: Ids, penalty: float) -> Edit:
    by = np.float32(penalty)
    return Edit(np.unique(tokens), lambda scores: np.where(scores < 0, scores * by, scores / by))


def _occurrence(answer: Ids, sampling: Sampling) -> Edit:
    ids, counts = np.unique(answer, return_counts=True)
    taken = (sampling.presence_penalty + sampling.frequency_penalty * counts).astype(np.float32)
    return Edit(ids, lambda scores: scores - taken)


def _without(ids: Ids) -> Edit:
    return Edit(ids, lambda scores: np.full_like(scores, -np.inf))


def _completions(tokens: Ids, size: int) -> Ids:
    """The ids that would complete, after `tokens`, a run of `size` tokens that is among them already."""
    if len(tokens) < size:
        return NO_IDS
    runs = np.lib.stride_tricks.sliding_window_view(tokens, size)
    begun = tokens[len(tokens) - size + 1 :]
    return np.unique(runs[(runs[:, :-1] == begun).all(axis=1), -1])


def _ids(ids: Collection[int]) -> Ids:
    return np.unique(np.fromiter(ids, np.int64, len(ids)))
