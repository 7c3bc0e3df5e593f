"""Hidden states from one float dtype to another: neighbours need not compute in the same."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from protocol.tensors import Tensor, from_numpy


def cast_hidden(hidden: Tensor, dtype: str) -> Tensor:
    """The same numbers in `dtype` ("f32", "f16" or "bf16"), rounded to nearest, ties to even.

    What is too large for f16 becomes infinite; whoever checks for finite numbers finds it.
    """
    if hidden.dtype == dtype:
        return hidden
    wide: NDArray[Any] = hidden.numpy()
    if dtype == "bf16":
        return Tensor("bf16", hidden.shape, _to_bf16(wide.astype(np.float32)).tobytes())
    with np.errstate(over="ignore"):
        return from_numpy(wide.astype(np.float16 if dtype == "f16" else np.float32))


def _to_bf16(wide: NDArray[np.float32]) -> NDArray[np.uint16]:
    bits = wide.view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    # Rounding may carry a NaN's payload into its sign; any NaN will do.
    return np.where(np.isnan(wide), np.uint16(0x7FC0), rounded.astype(np.uint16))
