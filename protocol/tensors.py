"""Tensors on the wire: dtype, shape and raw little-endian bytes, viewed and never copied."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from protocol import limits
from protocol.errors import LocalProtocolError, Malformed, TooLarge
from protocol.fields import Rule, word

if sys.byteorder != "little":  # pragma: no cover - no big-endian machine runs torch
    raise ImportError("tensors travel little-endian; this machine is big-endian")

ITEM_BYTES: Final = {"f32": 4, "f16": 2, "bf16": 2, "i32": 4}
_NUMPY: Final[dict[str, np.dtype[Any]]] = {
    name: np.dtype(code) for name, code in (("f32", "<f4"), ("f16", "<f2"), ("i32", "<i4"))
}
_NAMES: Final = {dtype: name for name, dtype in _NUMPY.items()}
_KEYS: Final = {"dtype", "shape", "codec", "data"}
MAX_DIMS: Final = 3


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor as it travels. `data` is C-contiguous and may be a view of a frame or of an array."""

    dtype: str  # a key of ITEM_BYTES
    shape: tuple[int, ...]
    data: bytes | memoryview

    def __repr__(self) -> str:
        return f"Tensor({self.dtype}, {list(self.shape)})"

    @property
    def rows(self) -> int:
        """Length of the first dimension."""
        return self.shape[0]

    def row_slice(self, start: int, stop: int) -> Tensor:
        """Rows start:stop, a view."""
        row_bytes = ITEM_BYTES[self.dtype] * math.prod(self.shape[1:])
        view = memoryview(self.data)[start * row_bytes : stop * row_bytes]
        return Tensor(self.dtype, (stop - start, *self.shape[1:]), view)

    def numpy(self) -> NDArray[Any]:
        """A read-only view as an array; bf16, which numpy lacks, is widened to a fp32 copy (exactly)."""
        if self.dtype == "bf16":
            wide = np.frombuffer(self.data, "<u2").astype("<u4") << 16
            return wide.view("<f4").reshape(self.shape)
        flat: NDArray[Any] = np.frombuffer(self.data, _NUMPY[self.dtype])
        return flat.reshape(self.shape)

    def pack(self) -> dict[str, Any]:
        """The msgpack map."""
        return {"dtype": self.dtype, "shape": list(self.shape), "codec": "raw", "data": self.data}


def concat_rows(parts: list[Tensor]) -> Tensor:
    """One tensor of all rows in order; parts must agree in dtype and row shape."""
    first = parts[0]
    if any(p.dtype != first.dtype or p.shape[1:] != first.shape[1:] for p in parts):
        raise LocalProtocolError("rows of different kinds cannot be joined")
    if len(parts) == 1:
        return first
    shape = (sum(p.rows for p in parts), *first.shape[1:])
    return Tensor(first.dtype, shape, b"".join(p.data for p in parts))


def from_numpy(array: NDArray[Any]) -> Tensor:
    """A view of a fp32, fp16 or int32 array (copied only if it is not contiguous)."""
    return Tensor(*_parts(array))


def pack_array(array: NDArray[Any]) -> dict[str, Any]:
    """The msgpack map of the tensor that an array makes."""
    name, shape, data = _parts(array)
    return {"dtype": name, "shape": list(shape), "codec": "raw", "data": data}


def _parts(array: NDArray[Any]) -> tuple[str, tuple[int, ...], bytes | memoryview]:
    name = _NAMES.get(array.dtype)
    if name is None:
        raise LocalProtocolError(f"{array.dtype} does not travel")
    # What is empty cannot be cast.
    return name, array.shape, np.ascontiguousarray(array).data.cast("B") if array.size else b""


def parse_tensor(value: Any) -> Tensor:
    """A tensor from its msgpack map. Raises: Malformed or TooLarge."""
    if not isinstance(value, dict) or value.keys() != _KEYS:
        raise Malformed("a tensor is a map of dtype, shape, codec and data")
    dtype, shape, codec, data = value["dtype"], value["shape"], value["codec"], value["data"]
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        raise Malformed("unknown dtype of a tensor")
    if codec != "raw":
        raise Malformed("unknown codec of a tensor")
    if not isinstance(shape, list) or not 1 <= len(shape) <= MAX_DIMS:
        raise Malformed(f"a tensor has 1 to {MAX_DIMS} dimensions")
    for n in shape:
        if type(n) is not int or not 0 <= n <= limits.FRAME_BYTES:
            raise Malformed("a dimension is no size")
    size = ITEM_BYTES[dtype] * math.prod(shape)
    if size > limits.FRAME_BYTES:
        raise TooLarge(f"a tensor of {size} bytes")
    if type(data) is not bytes or len(data) != size:
        raise Malformed(f"a tensor of shape {shape} and dtype {dtype} has {size} bytes")
    return Tensor(dtype, tuple(shape), data)


TENSOR: Final = Rule(Tensor.pack, parse_tensor)
FLOATS: Final = word("f32", "f16", "bf16")


def check_finite(tensor: Tensor) -> None:
    """Raises Malformed if a float tensor holds a NaN or an infinity."""
    if tensor.dtype == "bf16":
        exponents = np.frombuffer(tensor.data, "<u2") & 0x7F80
        finite = not bool((exponents == 0x7F80).any())
    else:
        finite = bool(np.isfinite(tensor.numpy()).all())
    if not finite:
        raise Malformed("the hidden states hold NaN or infinite values")
