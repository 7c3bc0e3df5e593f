"""Weights in four-bit floats, 32 of which share a power of two: as gpt-oss is published, read as plain floats."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from node.native.packed import GROUP
from node.native.tensors import StoredRows
from protocol.errors import BadCheckpoint

_HALF: Final = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_VALUES: Final = np.array([*_HALF, *(-value for value in _HALF)], np.float32)
# Of a byte its low four bits, then its high.
_PAIRS: Final = np.stack((_VALUES[np.arange(256) & 15], _VALUES[np.arange(256) >> 4]), axis=1)
_BIAS: Final = 127
# 6 times the power of two that the next one stands for is no float any more; the last one says "not a number".
_MOST: Final = 252


class Mxfp4Rows(StoredRows):
    """A matrix of [rows, groups, 16] bytes with [rows, groups] exponents."""

    def __init__(self, name: str, blocks: StoredRows, exponents: StoredRows) -> None:
        self.name = name
        self.stored = "BF16"  # which holds every one of them exactly
        self._array = blocks.raw
        self._exponents = exponents.raw
        self._rows = self._columns = None

    def at(self, index: int) -> Mxfp4Rows:
        """See `StoredRows`."""
        other = super().at(index)
        assert isinstance(other, Mxfp4Rows)
        other._exponents = self._exponents[index]
        return other

    @property
    def shape(self) -> tuple[int, ...]:
        """See `StoredRows`."""
        rows = self._exponents.shape[0] if self._rows is None else len(self._rows)
        return rows, self._exponents.shape[1] * GROUP

    def check(self) -> None:
        """See `StoredRows`."""
        if (self._exponents >= _MOST).any():
            raise BadCheckpoint(f"{self.name} holds NaN or infinite values")

    def _some(self, first: int, stop: int) -> NDArray[np.float32]:
        rows: Any = slice(first, stop) if self._rows is None else self._rows[first:stop]
        values = _PAIRS[self._array[rows]].reshape(*self._exponents[rows].shape, GROUP)
        powers = self._exponents[rows].astype(np.int32) - _BIAS
        with np.errstate(over="ignore"):  # whoever packs them refuses what is not finite
            wide: NDArray[np.float32] = np.ldexp(values, powers[..., None])
        return wide.reshape(len(values), -1)
