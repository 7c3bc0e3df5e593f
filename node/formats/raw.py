"""Tensors as they lie in their files: mapped, nothing read before it is asked for, and the floats that bytes mean."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from node.engine.shards import StoredTensor
from protocol.errors import BadCheckpoint

# Which rows are wanted: neighbours, or each by its number.
Which = slice | NDArray[np.intp]
Floats = NDArray[np.float32]
ALL: Final = slice(None)


def _small_floats(exponent_bits: int, mantissa_bits: int, *, infinite: bool) -> Floats:
    """Of each byte the float that it means: OCP's 8-bit formats, with or without infinities."""
    codes = np.arange(256)
    exponents, mantissas = (
        codes >> mantissa_bits & ((1 << exponent_bits) - 1),
        codes & ((1 << mantissa_bits) - 1),
    )
    bias, normal = (1 << exponent_bits - 1) - 1, exponents > 0
    sizes = np.ldexp(
        mantissas / (1 << mantissa_bits) + normal, np.maximum(exponents, 1) - bias, dtype=np.float64
    )
    last = exponents == (1 << exponent_bits) - 1
    if infinite:
        sizes[last] = np.where(mantissas[last] == 0, np.inf, np.nan)
    else:
        sizes[last & (mantissas == (1 << mantissa_bits) - 1)] = np.nan
    signed: Floats = np.where(codes < 128, sizes, -sizes).astype(np.float32)
    return signed


def _powers() -> Floats:
    """Of each byte the power of two that it means; the last one says "not a number"."""
    powers = np.ldexp(1.0, np.arange(256) - 127)
    powers[255] = np.nan
    return powers.astype(np.float32)


# By the names that safetensors has for them, and what a byte of theirs means.
_BYTE_FLOATS: Final = {
    "F8_E4M3": _small_floats(4, 3, infinite=False),
    "F8_E5M2": _small_floats(5, 2, infinite=True),
    "F8_E8M0": _powers(),
}
EIGHT_BIT_FLOATS: Final = ("F8_E4M3", "F8_E5M2")
FLOATS: Final = ("F32", "F16", "BF16")
_NUMPY: Final = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "BF16": "<u2",
    "BOOL": "u1",
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "i1",
    "U64": "<u8",
    "U32": "<u4",
    "U16": "<u2",
    "U8": "u1",
    **dict.fromkeys(_BYTE_FLOATS, "u1"),
}


class Raw:
    """One stored tensor: its name, dtype and shape, and its mapped numbers as `array`.

    BF16 and the 8-bit floats are unsigned integers there.
    """

    def __init__(self, name: str, path: Path, tensor: StoredTensor) -> None:
        """Raises: BadCheckpoint, naming what cannot be read."""
        self.name = name
        self.dtype = tensor.dtype
        self.shape = tensor.shape
        found = _NUMPY.get(tensor.dtype)
        dtype = None if found is None else np.dtype(found)
        count = math.prod(tensor.shape)
        if dtype is None or tensor.stop - tensor.start != dtype.itemsize * count:
            raise BadCheckpoint(f"{path}: {name} is stored as {tensor.dtype}, which is not read")
        try:
            # Copy on write: torch wants memory that it may write to.
            self.array: NDArray[Any] = (
                np.memmap(path, dtype, "c", tensor.start, tensor.shape)
                if count
                else np.zeros(tensor.shape, dtype)
            )
        except (OSError, ValueError) as error:
            raise BadCheckpoint(f"{path}: {name} cannot be read: {error}") from error

    def require(self, dtypes: tuple[str, ...], *shapes: tuple[int, ...]) -> Raw:
        """Itself. Raises: BadCheckpoint, unless it has one of these dtypes and, if some are given, shapes."""
        if self.dtype not in dtypes:
            raise BadCheckpoint(f"{self.name} is stored as {self.dtype}, where {' or '.join(dtypes)} belongs")
        if shapes and self.shape not in shapes:
            raise BadCheckpoint(f"{self.name} has the shape {list(self.shape)} instead of {list(shapes[0])}")
        return self

    def at(self, index: int) -> Raw:
        """One of the matrices that lie in it."""
        other = copy.copy(self)
        other.array, other.shape = self.array[index], self.shape[1:]
        return other

    def as_powers(self) -> Raw:
        """Itself, its bytes as the powers of two that they are where the files have no dtype for that."""
        other = copy.copy(self)
        other.dtype = "F8_E8M0" if self.dtype == "U8" else self.dtype
        return other

    def floats(self, which: Which = ALL) -> Floats:
        """Rows of it as the floats that they mean."""
        return floats_of(self.dtype, self.array[which] if self.shape else self.array)

    def bytes(self) -> NDArray[np.uint8]:
        """All of its bytes in a row, whatever they are kept as."""
        return self.array.reshape(-1).view(np.uint8)


def floats_of(dtype: str, stored: NDArray[Any]) -> Floats:
    """What numbers as they are stored mean."""
    if dtype == "BF16":
        return (stored.astype(np.uint32) << 16).view(np.float32)
    if dtype in _BYTE_FLOATS:
        return np.take(_BYTE_FLOATS[dtype], stored)
    return np.array(stored, np.float32)


def unpack(words: NDArray[Any], bits: int) -> NDArray[np.uint8]:
    """The codes of 2, 4 or 8 bits in integers [..., n], each one's lowest first: [..., codes]."""
    whole = np.ascontiguousarray(words).view(np.uint8)
    if bits == 8:
        return whole
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    codes = (whole[..., None] >> shifts) & np.uint8((1 << bits) - 1)
    return codes.reshape(*whole.shape[:-1], -1)
