"""Matrices as the kernels read them, and memory that suits them."""

from __future__ import annotations

import ctypes
import mmap
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

TILE: Final = 16
GROUP: Final = 32
# The kernels ask for weights ahead of their use, also behind the last ones.
_BEYOND: Final = 4096
# Smaller pieces of memory gain nothing from large pages.
_HUGE: Final = 1 << 21


class Kind(IntEnum):
    """How a matrix is stored; `model.h` has the same numbers."""

    F32 = 0
    BF16 = 1
    INT8 = 2
    INT4 = 3

    def code_bytes(self, outs: int, ins: int) -> int:
        """Of the codes of so many rows, a multiple of TILE."""
        return outs * ins * (8, 4, 2, 1)[self] // 2

    def scale_bytes(self, outs: int, ins: int) -> int:
        """Of their scales and minima."""
        return outs * ins // GROUP * (0, 0, 2, 4)[self]


class LinearStruct(ctypes.Structure):
    """`Linear` of `model.h`."""

    _fields_ = (
        ("kind", ctypes.c_int32),
        ("outs", ctypes.c_int32),
        ("ins", ctypes.c_int32),
        ("reserved", ctypes.c_int32),
        ("codes", ctypes.c_void_p),
        ("scales", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
    )


@dataclass(frozen=True, slots=True, eq=False)
class Matrix:
    """A packed matrix with `outs` rows that count; up to the next multiple of TILE, rows of zeros follow."""

    kind: Kind
    outs: int
    ins: int
    codes: NDArray[np.uint8]
    scales: NDArray[np.uint8]
    bias: NDArray[np.float32] | None

    @property
    def padded(self) -> int:
        """Rows in memory, and numbers in a row of results."""
        return padded(self.outs)

    @property
    def nbytes(self) -> int:
        """Memory that it takes."""
        return self.codes.nbytes + self.scales.nbytes + (0 if self.bias is None else self.bias.nbytes)

    def struct(self) -> LinearStruct:
        """For the kernels; this object has to outlive it."""
        return LinearStruct(
            self.kind,
            self.padded,
            self.ins,
            0,
            address(self.codes),
            address(self.scales),
            None if self.bias is None else address(self.bias),
        )


def padded(rows: int) -> int:
    """The next multiple of TILE."""
    return -(-rows // TILE) * TILE


def address(array: NDArray[Any]) -> int:
    """Where its first number lies."""
    return array.ctypes.data


def memory(size_bytes: int) -> NDArray[np.uint8]:
    """Zeroed memory of its own, at the beginning of a page; the system has it back with the last view."""
    mapped = mmap.mmap(-1, size_bytes + _BEYOND)
    if size_bytes >= _HUGE and hasattr(mmap, "MADV_HUGEPAGE"):
        mapped.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(mapped, np.uint8, size_bytes)
