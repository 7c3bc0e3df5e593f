"""The one door for what hops return: nothing is kept or carried on that was not asked for; pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from protocol import limits
from protocol.candidates import Candidates, Want
from protocol.entries import Entry
from protocol.errors import Malformed
from protocol.messages import Output
from protocol.tensors import ITEM_BYTES, Tensor, check_finite

# What a frame holds besides its tensors: names, numbers, shapes, and the longest text.
FRAME_EXTRA_BYTES: Final = 4096
# A head sums in fp32, in any order, and divides by the temperature before or after it rounds.
LSE_ABSOLUTE: Final = 1e-3
LSE_RELATIVE: Final = 1e-5


class Misfit(Malformed):
    """Sound in itself, but no answer to what we asked: the hop was given another step than ours, or says so.

    A step reaches a hop by way of the one before it, which may have changed its number, position or want.
    """


@dataclass(frozen=True, slots=True)
class Asked:
    """What the last hop is to return for one step: `rows` tokens from `position` on, of so many lanes."""

    want: Want
    position: int
    rows: int
    lanes: int = 1

    @property
    def expects_output(self) -> bool:
        """Whether anything comes back."""
        return self.want.kind != "nothing"

    @property
    def answer_rows(self) -> int:
        """Rows that come back."""
        return self.rows if self.want.every else self.lanes

    def check(self, output: Output, *, vocab_size: int, hidden_size: int, dtype: str) -> None:
        """Raises: Misfit, if `output` is not what this asks for; Malformed, if nothing could ask for it.

        `dtype`: of the hop's hidden states.
        """
        if self.want.kind == "hidden":
            hidden = check_hidden(output, hidden_size, dtype)
            if hidden.rows != self.answer_rows:
                raise Misfit(f"returned {hidden.rows} rows where {self.answer_rows} were asked for")
            first = self.position + self.rows - self.answer_rows
        else:
            if output.candidates is None or output.hidden is not None:
                raise Misfit("returned no candidates where they were asked for")
            check_candidates(output.candidates, self.want, self.answer_rows, vocab_size)
            check_states(output.candidates, self.want, hidden_size)
            first = self.position
        if output.position != first:
            raise Misfit(f"returned position {output.position} where {first} was asked for")


def check_hidden(output: Output, hidden_size: int, dtype: str) -> Tensor:
    """The hidden states in an output, one row or more. Raises: Misfit, Malformed."""
    hidden = output.hidden
    if hidden is None or output.candidates is not None:
        raise Misfit("returned no hidden states where they were asked for")
    if hidden.dtype != dtype or hidden.shape != (hidden.rows, hidden_size) or not hidden.rows:
        raise Malformed(f"returned {hidden} where {dtype} [rows, {hidden_size}] was asked for")
    check_finite(hidden)
    return hidden


def fit_rows(lacking: Sequence[Entry], position: int, hidden: Tensor) -> Tensor:
    """The rows of `hidden`, the first at `position`, that a boundary lacks: those of these steps and no others.

    A hop that has not heard yet of a rollback returns more rows than stand; they are cut off.
    Raises: Misfit, if rows are missing or come out of turn.
    """
    start, stop = lacking[0].position, lacking[-1].stop
    if position != start or position + hidden.rows < stop:
        raise Misfit(f"passed on {position}:{position + hidden.rows} where rows {start}:{stop} are next")
    return hidden if hidden.rows == stop - start else hidden.row_slice(0, stop - start)


def check_candidates(found: Candidates, want: Want, rows: int, vocab_size: int) -> None:
    """Raises: Misfit, if these are not `rows` answers to `want`; Malformed, if they contradict themselves.

    They are sound, as what comes in a message is; else `check_sound` first.
    """
    ids, logits, asked = found.ids, found.logits, found.asked
    shape = (rows, min(want.top or vocab_size, vocab_size))
    if ids.shape != shape or logits.shape != shape or found.lse.shape != (rows,):
        raise Misfit(f"returned candidates {list(ids.shape)} where {list(shape)} were asked for")
    if asked.shape != (rows, len(want.ids)):
        raise Misfit("returned the logits of another number of ids than asked for")
    if int(ids.max()) >= vocab_size:
        raise Malformed("returned a token outside the vocabulary")
    if not all(map(math.isfinite, logits[:, 0].tolist())):
        raise Malformed("returned a logit that is no number")
    if shape[1] > 1 and (logits[:, 1:] > logits[:, :-1]).any():
        raise Malformed("returned candidates that are not in falling order")
    if shape[1] > 1 or want.ids:
        wanted = np.asarray(want.ids, np.intp)
        for row in range(rows):
            _check_row(ids[row], logits[row], wanted, asked[row], vocab_size)
    _check_lse(logits, found.lse, want.temperature, vocab_size)


def check_states(found: Candidates, want: Want, hidden_size: int) -> None:
    """Raises: Misfit, if there are no states where they are wanted, or others; what they say nobody can check."""
    shape = None if found.states is None else found.states.shape
    if shape != ((len(found.ids), hidden_size) if want.states else None):
        raise Misfit(f"returned states {shape} with {len(found.ids)} rows of candidates")


def _check_row(
    ids: NDArray[np.int32],
    logits: NDArray[np.float32],
    wanted: NDArray[np.intp],
    asked: NDArray[np.float32],
    vocab_size: int,
) -> None:
    known = np.full(vocab_size, np.nan, np.float32)
    known[ids] = logits
    if np.count_nonzero(known == known) < len(ids):
        raise Malformed("returned the same token twice")
    if not len(wanted):
        return
    best = known[wanted]
    unseen = best != best
    # NaN and plus infinity are not at most the least of the best either.
    if not np.where(unseen, asked <= logits[-1], asked == best).all():
        raise Malformed("returned logits that contradict each other")


def _check_lse(
    logits: NDArray[np.float32], lse: NDArray[np.float32], temperature: float, vocab_size: int
) -> None:
    """The normaliser lies between that of the logits here and that with all others as high as the least of them."""
    others = vocab_size - logits.shape[1]
    for row, normaliser in zip(logits, lse.tolist(), strict=True):
        best, last = float(row[0]) / temperature, float(row[-1]) / temperature
        seen = float(np.exp(row.astype(np.float64) / temperature - best).sum()) if len(row) > 1 else 1.0
        error = LSE_ABSOLUTE + LSE_RELATIVE * max(abs(normaliser), abs(best))
        least, most = best + math.log(seen), best + math.log(seen + others * math.exp(last - best))
        if not least - error <= normaliser <= most + error:
            raise Misfit("returned a normaliser that its logits cannot have")


def answer_bytes(asked: Asked, vocab_size: int, hidden_size: int) -> int:
    """The largest frame that answers `asked`."""
    if asked.want.kind == "hidden":
        row_bytes = hidden_size * ITEM_BYTES["f32"]
    else:
        top = min(asked.want.top or vocab_size, vocab_size)
        row_bytes = 8 * top + 4 * len(asked.want.ids) + 4
        row_bytes += hidden_size * ITEM_BYTES["f32"] if asked.want.states else 0
    return min(asked.answer_rows * row_bytes + FRAME_EXTRA_BYTES, limits.FRAME_BYTES)


def hidden_bytes(hidden_size: int) -> int:
    """The largest frame of hidden states that a bridged hop returns."""
    tensor_bytes = limits.STEP_TOKENS * hidden_size * ITEM_BYTES["f32"]
    return min(tensor_bytes + FRAME_EXTRA_BYTES, limits.FRAME_BYTES)
