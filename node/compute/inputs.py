"""What strangers give an engine, checked at the door, and what they may want of it."""

from __future__ import annotations

import math
from typing import Final

import numpy as np
from numpy.typing import NDArray

from protocol.candidates import Want
from protocol.errors import Malformed
from protocol.tensors import Tensor, check_finite

_FLOATS: Final = ("f32", "f16", "bf16")


def token_ids(tensor: Tensor, vocab_size: int) -> NDArray[np.int32]:
    """int32 ids [tokens] within the vocabulary, a view. Raises: Malformed."""
    if tensor.dtype != "i32" or len(tensor.shape) != 1 or not tensor.rows:
        raise Malformed(f"a first stage takes int32 token ids [tokens], not {tensor!r}")
    ids: NDArray[np.int32] = tensor.numpy()
    if ids.min() < 0 or ids.max() >= vocab_size:
        raise Malformed(f"a token id outside the vocabulary of {vocab_size}")
    return ids


def check_context(position: int, rows: Tensor, context: int) -> None:
    """Raises Malformed if rows from `position` on go beyond what the model is made for.

    Learned positions end there; on a CUDA device reading past them would take the whole process with it.
    """
    if position + rows.rows > context:
        raise Malformed(f"{rows.rows} tokens at position {position}, the model's context is {context}")


def check_hidden(tensor: Tensor, hidden_size: int) -> None:
    """Raises Malformed unless these are finite float states [tokens, hidden_size] of at least one token."""
    if tensor.dtype not in _FLOATS or len(tensor.shape) != 2 or not tensor.rows:
        raise Malformed(f"this stage takes hidden states [tokens, {hidden_size}], not {tensor!r}")
    if tensor.shape[1] != hidden_size:
        raise Malformed(f"hidden states of {tensor.shape[1]} numbers, this model has {hidden_size}")
    check_finite(tensor)


def check_dtype(tensor: Tensor, dtype: str) -> None:
    """Raises Malformed unless the states are in the dtype that the span computes in."""
    if tensor.dtype != dtype:
        raise Malformed(f"this span computes in {dtype}, the states are {tensor.dtype}")


def check_want(want: Want, vocab_size: int) -> None:
    """Raises Malformed if the head cannot return what is wanted."""
    if want.kind not in ("nothing", "candidates"):
        raise Malformed(f"the head returns candidates, not {want.kind!r}")
    if want.top < 0 or any(not 0 <= token < vocab_size for token in want.ids):
        raise Malformed(f"logits wanted outside the vocabulary of {vocab_size}")
    if not (math.isfinite(want.temperature) and want.temperature > 0):
        raise Malformed(f"a temperature of {want.temperature}")
