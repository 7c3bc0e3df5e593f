"""Tensors of a GGUF file as rows of floats: widened piece by piece, where and when they are asked for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from node.native.gguf.architectures import GgufTensor
from node.native.gguf.quants import FOURS, TYPES, Fours, fours, widen
from node.native.packed import TILE
from node.native.tensors import PIECE, Order, StoredRows
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

    @property
    def in_fours(self) -> bool:
        """Whether its groups can be packed as they are: see `fours`."""
        return self.stored in FOURS and self._columns is None

    def fours(self) -> Iterator[Fours]:
        """Its rows in groups of four bits, some at a time: whole tiles, but for the last."""
        step = max(TILE, PIECE // self.shape[1] // TILE * TILE)
        for row in range(0, self.shape[0], step):
            if self._rows is None:
                yield fours(self.stored, self._array[row : row + step])
                continue
            rows = self._rows[row : row + step]
            found = fours(self.stored, self._array[rows])
            for part in found:
                part[rows < 0] = 0
            yield found

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
