"""What the LM head returns: the best logits of each row, and enough to sample from them exactly."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from protocol import limits
from protocol.errors import Malformed
from protocol.fields import FLAG, Rule, real, sequence, uint, wire, word
from protocol.tensors import Tensor, pack_array, parse_tensor


@dataclass(frozen=True, slots=True)
class Want:
    """What a step should return.

    kind        "nothing" (fill the caches), "hidden" (the states after the last stage) or "candidates"
    every       rows of every position of the step, not only of the last one
    top         how many of the best logits a row returns; 0 means the whole vocabulary
    ids         token ids whose logits are returned besides (a repetition penalty's window)
    temperature the log-sum-exp is taken over logits / temperature
    states      each row returns, besides, the states of which its logits are made
    """

    kind: str = wire(word("nothing", "hidden", "candidates"), default="candidates")
    every: bool = wire(FLAG, default=False)
    top: int = wire(uint(limits.VOCABULARY), default=1)
    ids: tuple[int, ...] = wire(sequence(uint(limits.VOCABULARY - 1), limits.ASKED_IDS), default=())
    temperature: float = wire(real(1e-3, 1e3), default=1.0)
    states: bool = wire(FLAG, default=False)


NOTHING = Want("nothing")
HIDDEN = Want("hidden", every=True)


@dataclass(frozen=True, slots=True, eq=False)
class Candidates:
    """Best logits per row, in falling order of logit (ties: the lower id first)."""

    ids: NDArray[np.int32]  # [rows, n]
    logits: NDArray[np.float32]  # [rows, n], raw: no penalty, no temperature
    lse: NDArray[np.float32]  # [rows], log-sum-exp of logits / temperature over the whole vocabulary
    asked: NDArray[np.float32]  # [rows, m], logits of Want.ids in their order
    states: NDArray[np.float32] | None = (
        None  # [rows, hidden_size], after the last norm, where they were wanted
    )

    def pack(self) -> dict[str, object]:
        """The msgpack map; without states, where there are none."""
        arrays = {"ids": self.ids, "logits": self.logits, "lse": self.lse, "asked": self.asked}
        if self.states is not None:
            arrays["states"] = self.states
        return {name: pack_array(array) for name, array in arrays.items()}


def join_candidates(parts: Sequence[Candidates]) -> Candidates | None:
    """All rows in order; None if there are no parts."""
    if len(parts) < 2:
        return parts[0] if parts else None
    names = ["ids", "logits", "lse", "asked"] + ["states"] * (parts[0].states is not None)
    return Candidates(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in names})


def last_row(found: Candidates) -> Candidates:
    """The last row alone."""
    states = None if found.states is None else found.states[-1:]
    return Candidates(found.ids[-1:], found.logits[-1:], found.lse[-1:], found.asked[-1:], states)


def candidates_from_tensors(
    ids: Tensor, logits: Tensor, lse: Tensor, asked: Tensor, states: Tensor | None = None
) -> Candidates:
    """Candidates whose shapes and dtypes agree. Raises: Malformed."""
    if ids.dtype != "i32" or any(t.dtype != "f32" for t in (logits, lse, asked)):
        raise Malformed("candidates are int32 ids and fp32 logits")
    if len(ids.shape) != 2 or ids.shape != logits.shape or lse.shape != ids.shape[:1]:
        raise Malformed("candidates of different shapes")
    if len(asked.shape) != 2 or asked.shape[0] != ids.shape[0]:
        raise Malformed("asked logits of a wrong shape")
    if states is not None and (
        states.dtype != "f32" or len(states.shape) != 2 or states.shape[0] != ids.shape[0]
    ):
        raise Malformed("states of a wrong shape")
    whole = None if states is None else states.numpy()
    found = Candidates(ids.numpy(), logits.numpy(), lse.numpy(), asked.numpy(), whole)
    check_sound(found)
    return found


def check_sound(found: Candidates) -> None:
    """Raises Malformed for what no logits can have been."""
    # NaN is not below infinity either
    below_infinity = all((logits < np.inf).all() for logits in (found.logits, found.asked) if logits.size)
    if not below_infinity or not all(map(math.isfinite, found.lse.tolist())) or (found.ids < 0).any():
        raise Malformed("candidates hold NaN, infinity, an infinite normaliser or a negative id")
    if found.states is not None and not np.isfinite(found.states).all():
        raise Malformed("candidates come with states that are not finite")


def _parse_candidates(value: Any) -> Candidates:
    if not isinstance(value, dict) or value.keys() - {"states"} != {"ids", "logits", "lse", "asked"}:
        raise Malformed(
            "candidates are a map of ids, logits, lse and asked, and states where they were wanted"
        )
    return candidates_from_tensors(**{name: parse_tensor(tensor) for name, tensor in value.items()})


CANDIDATES: Final = Rule(Candidates.pack, _parse_candidates)
