"""Whether what a hop returned is what was asked for; pure."""

from __future__ import annotations

from dataclasses import dataclass

from protocol.candidates import Candidates, Want
from protocol.errors import Malformed
from protocol.messages import Output
from protocol.tensors import Tensor, check_finite


@dataclass(frozen=True, slots=True)
class Asked:
    """What the last hop is to return for one step of `rows` tokens."""

    want: Want
    rows: int

    @property
    def expects_output(self) -> bool:
        """Whether anything comes back."""
        return self.want.kind != "nothing"

    def check(self, output: Output, vocab_size: int) -> None:
        """Raises: Malformed, the fault of the hop that returned `output`."""
        rows = self.rows if self.want.every else 1
        if self.want.kind == "hidden":
            _check_hidden(output.hidden, rows)
        else:
            _check_candidates(output.candidates, self.want, rows, vocab_size)


def _check_hidden(hidden: Tensor | None, rows: int) -> None:
    if hidden is None or hidden.dtype == "i32" or len(hidden.shape) != 2 or hidden.rows != rows:
        raise Malformed(f"returned {hidden} where hidden states of {rows} rows were asked for")
    check_finite(hidden)


def _check_candidates(found: Candidates | None, want: Want, rows: int, vocab_size: int) -> None:
    if found is None:
        raise Malformed("returned no candidates where they were asked for")
    shape = (rows, min(want.top or vocab_size, vocab_size))
    if found.ids.shape != shape or found.asked.shape != (rows, len(want.ids)):
        raise Malformed(f"returned candidates {list(found.ids.shape)} where {list(shape)} were asked for")
    if int(found.ids.max()) >= vocab_size:
        raise Malformed("returned a token outside the vocabulary")
