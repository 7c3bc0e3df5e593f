"""Stored tensors as rows of floats, read from the mapped file as they are asked for."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from node.engine.shards import StoredTensor
from node.native.coded import Coded
from node.native.packed import TILE, Kind
from protocol.errors import BadCheckpoint

Dtypes = Mapping[str, np.dtype[Any]]
FLOATS: Final[Dtypes] = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype("<u2")}
# Of each row or column that is wanted where it is stored, -1 for zeros.
Order = NDArray[np.intp]
# Floats that are widened at once while a matrix is packed: some MiB.
PIECE: Final = 1 << 20


class StoredRows:
    """A vector or a matrix in a file. Nothing is read before it is asked for."""

    def __init__(self, name: str, path: Path, tensor: StoredTensor, shape: tuple[int, ...]) -> None:
        """Raises: BadCheckpoint, if it is stored in another shape, or in another dtype than those of `FLOATS`."""
        if tensor.shape != shape:
            shapes = f"{list(tensor.shape)} instead of {list(shape)}"
            raise BadCheckpoint(
                f"{name} has the shape {shapes}, so config.json and the weights do not belong together"
            )
        dtype = FLOATS.get(tensor.dtype)
        if dtype is None or tensor.stop - tensor.start != dtype.itemsize * int(np.prod(shape)):
            raise BadCheckpoint(f"{path}: {name} is stored as {tensor.dtype}, which is not read")
        try:
            self._array: NDArray[Any] = np.memmap(path, dtype, "r", tensor.start, shape)
        except OSError as error:
            raise BadCheckpoint(f"{path}: cannot be read: {error.strerror}") from error
        self.name = name
        self.stored = tensor.dtype  # as safetensors names it; other forms have names of their own
        self._rows: Order | None = None
        self._columns: Order | None = None

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return self._array.nbytes

    def at(self, index: int) -> StoredRows:
        """One of those that lie in this tensor."""
        other = copy.copy(self)
        other._array = self._array[index]
        return other

    def transposed(self) -> StoredRows:
        """This, with its columns as rows."""
        other = copy.copy(self)
        other._array = self._array.T
        return other

    def ordered(self, rows: Order | None, columns: Order | None = None) -> StoredRows:
        """This, with its rows and columns in another order; zeros where that says -1."""
        other = copy.copy(self)
        other._rows, other._columns = rows, columns
        return other

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the whole, in its order."""
        orders = (self._rows, self._columns)
        stored = self._array.shape
        return tuple(
            size if order is None else len(order) for size, order in zip(stored, orders, strict=False)
        )

    def vector(self) -> NDArray[np.float32]:
        """All of it. Raises: BadCheckpoint, if it is not finite."""
        values = self._some(0, self.shape[0])
        self._require(np.isfinite(values))
        return values

    def check(self) -> None:
        """All of it is finite, in whatever order. Raises: BadCheckpoint, which names it."""
        rows = max(1, PIECE // max(1, self._array[:1].size))
        for row in range(0, len(self._array), rows):
            self._require(self._finite(self._array[row : row + rows]))

    def _finite(self, some: NDArray[Any]) -> NDArray[np.bool_]:
        upper_halves = some.dtype == np.uint16
        finite: NDArray[np.bool_] = (some & 0x7F80) != 0x7F80 if upper_halves else np.isfinite(some)
        return finite

    def _require(self, finite: NDArray[np.bool_]) -> None:
        if not finite.all():
            raise BadCheckpoint(f"{self.name} holds NaN or infinite values")

    def pieces(self) -> Iterator[NDArray[np.float32]]:
        """Its rows in order, some at a time: whole tiles, but for the last."""
        for first, stop in self._steps():
            yield self._some(first, stop)

    def is_coded(self, kind: Kind) -> bool:
        """Whether its rows can be packed in this kind as they are, no number becoming a float."""
        return False

    def coded(self, kind: Kind) -> Iterator[Coded]:
        """The same pieces, in groups. Of what `is_coded`."""
        for first, stop in self._steps():
            yield self._coded(first, stop, kind)

    def _coded(self, first: int, stop: int, kind: Kind) -> Coded:
        raise NotImplementedError

    def _steps(self) -> Iterator[tuple[int, int]]:
        step = max(TILE, PIECE // self.shape[1] // TILE * TILE)
        for row in range(0, self.shape[0], step):
            yield row, min(row + step, self.shape[0])

    def pick(self, rows: NDArray[np.int32]) -> NDArray[np.float32]:
        """These rows."""
        return self._widen(self._array[rows])

    def _some(self, first: int, stop: int) -> NDArray[np.float32]:
        """Rows first:stop of those that are asked for."""
        if self._rows is None:
            values = self._widen(self._array[first:stop])
        else:
            rows = self._rows[first:stop]
            values = self._widen(self._array[rows])
            values[rows < 0] = 0
        if self._columns is not None:
            values = values[:, self._columns]
            values[:, self._columns < 0] = 0
        return values

    def _widen(self, stored: NDArray[Any]) -> NDArray[np.float32]:
        if stored.dtype == np.uint16:  # the upper halves of floats
            return (stored.astype(np.uint32) << 16).view(np.float32)
        return np.array(stored, np.float32)


class TurnedRows:
    """The columns of a matrix as rows, for one that is small: it is read and turned at once."""

    def __init__(self, rows: StoredRows) -> None:
        self._rows = rows
        self.name, self.stored = rows.name, rows.stored

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the whole, in its order."""
        return self._rows.shape[::-1]

    def pieces(self) -> Iterator[NDArray[np.float32]]:
        """See `StoredRows`."""
        yield np.ascontiguousarray(np.concatenate(list(self._rows.pieces())).T)

    def is_coded(self, kind: Kind) -> bool:
        """Never: groups lie along what were rows."""
        return False

    def coded(self, kind: Kind) -> Iterator[Coded]:
        """See `StoredRows`."""
        raise NotImplementedError

    def check(self) -> None:
        """See `StoredRows`."""
        self._rows.check()
