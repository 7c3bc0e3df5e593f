"""Candidates from logits, in numpy: the same as `node.engine.head` makes with torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from node.native.kernel import HeadStruct, Kernel
from node.native.shape import Shape
from node.native.weights import HeadWeights
from protocol.candidates import Candidates, Want
from protocol.errors import Malformed

# Rows whose logits are held at once: a quarter of a million tokens each, at most.
_ROWS = 16

Rows = NDArray[np.float32]
_Picked = tuple[NDArray[np.int32], Rows, float, Rows]


class Head:
    """The end of a model of this shape."""

    def __init__(self, kernel: Kernel, shape: Shape, weights: HeadWeights) -> None:
        self._kernel = kernel
        self._shape = shape
        self._weights = weights  # the structure holds addresses only
        self._struct = HeadStruct(
            weights.matrix.struct(),
            weights.norm.struct(),
            int(shape.centred),
            shape.epsilon,
            shape.logits_cap,
        )

    @property
    def nbytes(self) -> int:
        """Memory that the weights take."""
        return self._weights.matrix.nbytes + self._weights.norm.nbytes

    def candidates(self, asked: Sequence[tuple[Rows, Want]]) -> list[Candidates | Malformed]:
        """What each asks of its states [rows, hidden], at least one row; all go through the head together.

        Ties go to the lower id. Malformed, where states are so large that the logits overflow.
        """
        logits = self._logits(np.concatenate([states for states, _ in asked]))
        return [self._answer(islice(logits, len(states)), states, want) for states, want in asked]

    def _answer(self, logits: Iterator[Rows], states: Rows, want: Want) -> Candidates | Malformed:
        found, failure = [], None
        for row in logits:  # to the last, whatever one of them holds: the next call's follow
            try:
                found.append(_pick(self._kernel, row, want))
            except Malformed as error:
                failure = error
        if failure is not None:
            return failure
        ids, best, normalisers, asked = zip(*found, strict=True)
        return Candidates(
            np.stack(ids),
            np.stack(best),
            np.array(normalisers, np.float32),
            np.stack(asked),
            self._kernel.last_norm(self._struct, np.ascontiguousarray(states)) if want.states else None,
        )

    def _logits(self, states: Rows) -> Iterator[Rows]:
        outs, divisor = self._weights.matrix.outs, self._shape.logits_divisor
        for start in range(0, len(states), _ROWS):
            some = np.ascontiguousarray(states[start : start + _ROWS])
            logits = self._kernel.head(self._struct, outs, some)
            yield from logits if divisor == 1.0 else logits / np.float32(divisor)


def _pick(kernel: Kernel, logits: Rows, want: Want) -> _Picked:
    normaliser = kernel.log_sum_exp(logits, want.temperature)
    if not np.isfinite(normaliser) or not np.isfinite(logits).all():
        raise Malformed("the hidden states lead to logits that are not finite")
    ids = _top(logits, want.top)
    return ids, logits[ids], normaliser, logits[list(want.ids)] if want.ids else logits[:0].copy()


def _top(logits: Rows, top: int) -> NDArray[np.int32]:
    """The ids of the best logits, falling, of equal ones the lower first."""
    if top == 1:
        return np.array([logits.argmax()], np.int32)  # numpy: the first of equal ones
    if not top or top >= len(logits):
        return np.argsort(-logits, kind="stable").astype(np.int32)
    bar = np.partition(logits, len(logits) - top)[len(logits) - top]
    ids = np.flatnonzero(logits >= bar)  # rising
    return ids[np.argsort(-logits[ids], kind="stable")][:top].astype(np.int32)
