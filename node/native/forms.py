"""Tensors of a quantised checkpoint as rows of floats, or as the codes that they are."""

from __future__ import annotations

import copy

import numpy as np
from numpy.typing import NDArray

from node.formats.form import Form
from node.native.coded import Coded
from node.native.packed import Kind
from node.native.tensors import PIECE, StoredRows
from protocol.errors import BadCheckpoint

_BITS = {Kind.INT4: 4, Kind.INT8: 8}


class FormRows(StoredRows):
    """See `StoredRows`; what is stored is several tensors, which stand for this one."""

    def __init__(self, name: str, form: Form, shape: tuple[int, ...], nbytes: int) -> None:
        """nbytes: of all these tensors. Raises: BadCheckpoint, if it is of another shape."""
        if form.shape != shape:
            shapes = f"{list(form.shape)} instead of {list(shape)}"
            raise BadCheckpoint(
                f"{name} has the shape {shapes}, so config.json and the weights do not belong together"
            )
        self.name = name
        self.stored = form.kept
        self._form = form
        self._nbytes = nbytes
        self._rows = self._columns = None

    @property
    def nbytes(self) -> int:
        """See `StoredRows`."""
        return self._nbytes

    def at(self, index: int) -> FormRows:
        """See `StoredRows`."""
        return self._with(self._form.at(index))

    def transposed(self) -> FormRows:
        """See `StoredRows`. Raises: BadCheckpoint, where the form has no such rows."""
        return self._with(self._form.transposed())

    def _with(self, form: Form) -> FormRows:
        other = copy.copy(self)
        other._form = form
        return other

    @property
    def shape(self) -> tuple[int, ...]:
        """See `StoredRows`."""
        orders = (self._rows, self._columns)
        return tuple(
            size if order is None else len(order)
            for size, order in zip(self._form.shape, orders, strict=True)
        )

    def check(self) -> None:
        """See `StoredRows`."""
        rows, columns = self._form.shape
        step = max(1, PIECE // columns)
        for row in range(0, rows, step):
            self._require(np.isfinite(self._form.rows(slice(row, row + step))))

    def pick(self, rows: NDArray[np.int32]) -> NDArray[np.float32]:
        """See `StoredRows`."""
        return self._form.rows(rows.astype(np.intp))

    def is_coded(self, kind: Kind) -> bool:
        """See `StoredRows`."""
        return kind in _BITS and self._columns is None and self._form.fits(_BITS[kind])

    def _coded(self, first: int, stop: int, kind: Kind) -> Coded:
        order = None if self._rows is None else self._rows[first:stop]
        groups = self._form.groups(slice(first, stop) if order is None else order)
        steps = groups.steps
        if order is not None and (absent := order < 0).any():
            steps = np.where(absent[:, None], np.float32(0), steps)
        if kind is Kind.INT4:
            return groups.codes, steps, -(groups.zeros * steps)
        return (groups.codes - groups.zeros[..., None]).astype(np.int8), steps, None

    def _some(self, first: int, stop: int) -> NDArray[np.float32]:
        if self._rows is None:
            values = self._form.rows(slice(first, stop))
        else:
            rows = self._rows[first:stop]
            values = self._form.rows(rows)
            values[rows < 0] = 0
        if self._columns is not None:
            values = values[:, self._columns]
            values[:, self._columns < 0] = 0
        return values
