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
# A large page, and what an arena takes from the system at once: it costs nothing until it is written to.
_HUGE: Final = 1 << 21
_CHUNK: Final = 1 << 26


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


class NormStruct(ctypes.Structure):
    """`Norm` of `model.h`."""

    _fields_ = (("weight", ctypes.c_void_p), ("bias", ctypes.c_void_p))


@dataclass(frozen=True, slots=True, eq=False)
class Norm:
    """What a norm multiplies by, and what it adds."""

    weight: NDArray[np.float32]
    bias: NDArray[np.float32] | None = None

    @property
    def nbytes(self) -> int:
        """Memory that it takes."""
        return self.weight.nbytes + (0 if self.bias is None else self.bias.nbytes)

    def struct(self) -> NormStruct:
        """For the kernels; this object has to outlive it."""
        return NormStruct(address(self.weight), None if self.bias is None else address(self.bias))


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
    return np.frombuffer(_mapped(max(1, size_bytes)), np.uint8)[:size_bytes]


class Arena:
    """Memory for many matrices that live as long as one another, in large pages where the system has them.

    In small ones the walk over the weights is a walk over tables of pages as well, which costs a third of the speed.
    """

    def __init__(self) -> None:
        self._chunk = np.zeros(0, np.uint8)

    def take(self, size_bytes: int) -> NDArray[np.uint8]:
        """So many bytes, aligned to 64."""
        used = -(-size_bytes // 64) * 64
        if used > len(self._chunk):
            self._chunk = _chunk(max(used, _CHUNK))
        taken, self._chunk = self._chunk[:size_bytes], self._chunk[used:]
        return taken


def _chunk(size_bytes: int) -> NDArray[np.uint8]:
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        return memory(size_bytes)
    mapped = _mapped(size_bytes + _HUGE)
    mapped.madvise(mmap.MADV_HUGEPAGE)
    whole = np.frombuffer(mapped, np.uint8)
    start = -address(whole) % _HUGE
    return whole[start : start + size_bytes]


def _mapped(size_bytes: int) -> mmap.mmap:
    # Private: what could be shared with another process has no large pages.
    return mmap.mmap(-1, size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
