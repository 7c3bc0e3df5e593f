"""Candidates from logits, in numpy: the same as `node.engine.head` makes with torch."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from node.native.kernel import Kernel
from node.native.weights import HeadWeights
from protocol.candidates import Candidates, Want
from protocol.errors import Malformed

# Rows whose logits are held at once: a quarter of a million tokens each, at most.
_ROWS = 16


def candidates(
    kernel: Kernel,
    head: HeadWeights,
    epsilon: float,
    divisor: float,
    states: NDArray[np.float32],
    want: Want,
) -> Candidates:
    """What `want` asks of states [rows, hidden]. Ties go to the lower id.

    Raises: Malformed, if the states are so large that the logits overflow.
    """
    rows = [_pick(kernel, logits, want) for logits in _logits(kernel, head, epsilon, divisor, states)]
    ids, best, normalisers, asked = zip(*rows, strict=True)
    return Candidates(np.stack(ids), np.stack(best), np.array(normalisers, np.float32), np.stack(asked))


_Row = tuple[NDArray[np.int32], NDArray[np.float32], float, NDArray[np.float32]]


def _logits(
    kernel: Kernel, head: HeadWeights, epsilon: float, divisor: float, states: NDArray[np.float32]
) -> Iterator[NDArray[np.float32]]:
    for start in range(0, len(states), _ROWS):
        some = np.ascontiguousarray(states[start : start + _ROWS])
        logits = kernel.head(head.matrix, head.norm, epsilon, some)
        yield from logits if divisor == 1.0 else logits / np.float32(divisor)


def _pick(kernel: Kernel, logits: NDArray[np.float32], want: Want) -> _Row:
    normaliser = kernel.log_sum_exp(logits, want.temperature)
    if not np.isfinite(normaliser) or not np.isfinite(logits).all():
        raise Malformed("the hidden states lead to logits that are not finite")
    ids = _top(logits, want.top)
    return ids, logits[ids], normaliser, logits[list(want.ids)] if want.ids else logits[:0].copy()


def _top(logits: NDArray[np.float32], top: int) -> NDArray[np.int32]:
    """The ids of the best logits, falling, of equal ones the lower first."""
    if top == 1:
        return np.array([logits.argmax()], np.int32)  # numpy: the first of equal ones
    if not top or top >= len(logits):
        return np.argsort(-logits, kind="stable").astype(np.int32)
    bar = np.partition(logits, len(logits) - top)[len(logits) - top]
    ids = np.flatnonzero(logits >= bar)  # rising
    return ids[np.argsort(-logits[ids], kind="stable")][:top].astype(np.int32)
