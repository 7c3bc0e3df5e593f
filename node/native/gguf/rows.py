"""Tensors of a GGUF file as rows of floats: widened piece by piece, where and when they are asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from node.native.coded import Coded
from node.native.gguf.architectures import GgufTensor
from node.native.gguf.quants import FOURS, TYPES, fours, widen
from node.native.packed import Kind
from node.native.tensors import Order, StoredRows
from protocol.errors import BadCheckpoint


class GgufRows(StoredRows):
    """See `StoredRows`; a row of bytes stands for a row of numbers."""

    def __init__(self, name: str, path: Path, tensor: GgufTensor, shape: tuple[int, ...]) -> None:
        """Raises: BadCheckpoint, if it is stored in another shape."""
        if tensor.shape != shape:
            shapes = f"{list(tensor.shape)} instead of {list(shape)}"
            raise BadCheckpoint(
                f"{name} has the shape {shapes}, so metadata and weights do not belong together"
            )
        kind = TYPES[tensor.dtype]
        if len(shape) == 1 and kind.values > 1:
            raise BadCheckpoint(f"{path}: {name} is stored as {tensor.dtype}, which a vector is not")
        self.name = name
        self.stored = tensor.dtype
        self._shape = shape
        self._raised = np.float32(tensor.raised)
        row_bytes = (1 if len(shape) == 1 else shape[1] // kind.values) * kind.size
        try:
            self._array: NDArray[Any] = np.memmap(path, np.uint8, "r", tensor.start, (shape[0], row_bytes))
        except (OSError, ValueError) as error:
            raise BadCheckpoint(f"{path}: cannot be read: {error}") from error
        self._turned = _turned(shape[0], tensor.heads)
        self._rows, self._columns = self._turned, None

    @property
    def shape(self) -> tuple[int, ...]:
        """See `StoredRows`."""
        rows = self._shape[0] if self._rows is None else len(self._rows)
        columns = self._shape[1:] if self._columns is None else (len(self._columns),)
        return (rows, *columns)

    def ordered(self, rows: Order | None, columns: Order | None = None) -> StoredRows:
        """See `StoredRows`."""
        if self._turned is None:
            return super().ordered(rows, columns)
        if rows is None:
            return super().ordered(self._turned, columns)
        return super().ordered(np.where(rows < 0, -1, self._turned[rows]), columns)

    def is_coded(self, kind: Kind) -> bool:
        """See `StoredRows`: what is in groups of four bits."""
        return kind is Kind.INT4 and self.stored in FOURS and self._columns is None

    def _coded(self, first: int, stop: int, kind: Kind) -> Coded:
        if self._rows is None:
            return fours(self.stored, self._array[first:stop])
        rows = self._rows[first:stop]
        found = fours(self.stored, self._array[rows])
        for part in found:
            part[rows < 0] = 0
        return found

    def _finite(self, some: NDArray[Any]) -> NDArray[np.bool_]:
        return np.isfinite(self._widen(some))

    def _widen(self, stored: NDArray[Any]) -> NDArray[np.float32]:
        values = widen(self.stored, stored)
        if self._raised:
            values -= self._raised
        return values.reshape(-1) if len(self._shape) == 1 else values


def _turned(rows: int, heads: int) -> Order | None:
    """Of each row where it is stored: first halves of heads and second ones take turns there."""
    if not heads:
        return None
    if rows % (2 * heads):
        raise BadCheckpoint(
            f"{rows} rows do not make {heads} heads, so metadata and weights do not belong together"
        )
    return np.arange(rows).reshape(heads, -1, 2).swapaxes(1, 2).reshape(-1)
