"""Forms: matrices as a quantised checkpoint keeps them, which become numbers some rows at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from node.formats.raw import ALL, Floats, Which
from protocol.errors import BadCheckpoint

GROUP: Final = 32
# What `Form.kept` says of codes of four bits in such groups, which are best kept as they are.
IN_FOURS: Final = "INT4"
# Rows of something that has as many as the matrix, or as many as its columns of blocks.
Reader = Callable[[Which], NDArray[Any]]
# For each column the group that it belongs to; None: groups are neighbours.
Columns = NDArray[np.intp] | None


@dataclass(frozen=True, slots=True, eq=False)
class Groups:
    """Rows in groups of 32 that share a step: a number is (code - zero) * step. Exact, nothing was rounded."""

    codes: NDArray[np.uint8] | NDArray[np.int8]  # [rows, groups, 32]
    zeros: NDArray[np.int16]  # [rows, groups]
    steps: Floats  # [rows, groups]


class Form:
    """A matrix in some form. `shape`: of what it stands for; of a stack of matrices with their count before."""

    shape: tuple[int, ...]

    @property
    def kept(self) -> str:
        """What holds each number exactly: "BF16", as safetensors names it, or IN_FOURS; "" if it takes more."""
        return ""

    def rows(self, which: Which) -> Floats:
        """Some rows of the matrix, [rows, columns]. Raises: BadCheckpoint."""
        raise NotImplementedError

    def whole(self) -> Floats:
        """All of it, of whatever shape. Raises: BadCheckpoint."""
        return self.rows(ALL)

    def at(self, index: int) -> Form:
        """One of a stack."""
        raise BadCheckpoint("a matrix by itself, where one for each expert belongs")

    def transposed(self) -> Form:
        """With its columns as rows."""
        raise BadCheckpoint("a matrix with its rows in groups, where its columns have to be")

    def fits(self, bits: int) -> bool:
        """Whether its rows are groups whose codes are from 0 to 15 (4), or within 8 bits of their zeros (8)."""
        return False

    def groups(self, which: Which) -> Groups:
        """Some rows of a matrix that fits."""
        raise NotImplementedError


@dataclass(eq=False)
class Integers(Form):
    """Whole numbers with a scale, and a zero, for each group of columns: (code - zero) * scale.

    codes    [rows, columns], from lowest to lowest + 2^bits - 1
    scales   [rows, groups]
    zeros    [rows, groups], or one for all
    columns  asked for when they are needed, as they may have to be read
    """

    shape: tuple[int, int]
    bits: int
    codes: Reader
    scales: Reader
    zeros: Reader | int
    columns: Callable[[], Columns] = field(default=lambda: None)
    lowest: int = 0

    @property
    def kept(self) -> str:
        """See `Form`."""
        return IN_FOURS if self.fits(4) else ""

    def rows(self, which: Which) -> Floats:
        """See `Form`."""
        codes, scales = self.codes(which).astype(np.float32), self.scales(which)
        zeros = self._zeros(which, scales).astype(np.float32)
        with np.errstate(over="ignore", invalid="ignore"):  # whoever packs them refuses what is not finite
            if (columns := self.columns()) is not None:
                return (codes - zeros[:, columns]) * scales[:, columns]
            grouped = codes.reshape(*scales.shape, -1)
            grouped -= zeros[..., None]
            grouped *= scales[..., None]
        return grouped.reshape(codes.shape)

    def fits(self, bits: int) -> bool:
        """See `Form`."""
        return self._in_groups and self._within(bits)

    def groups(self, which: Which) -> Groups:
        """See `Form`."""
        codes, scales = self.codes(which), self.scales(which)
        count, zeros = self.shape[1] // GROUP, self._zeros(which, scales)
        times = count // scales.shape[1]
        return Groups(
            codes.reshape(len(codes), count, GROUP),
            np.repeat(zeros, times, axis=1),
            np.repeat(scales, times, axis=1),
        )

    @cached_property
    def _in_groups(self) -> bool:
        groups = self.scales(slice(0, 1)).shape[1]
        return self.shape[1] % (groups * GROUP) == 0 and self.columns() is None

    def _within(self, bits: int) -> bool:
        highest = self.lowest + (1 << self.bits) - 1
        if bits == 4:
            return self.lowest == 0 and highest <= 15
        least, most = self._bounds
        return self.lowest - most >= -128 and highest - least <= 127

    @cached_property
    def _bounds(self) -> tuple[int, int]:
        """The least and the greatest of the zeros, as far as it takes no reading of many."""
        if isinstance(self.zeros, int):
            return self.zeros, self.zeros
        if self.bits <= 4:
            return self.lowest, self.lowest + (1 << self.bits)
        zeros = self.zeros(ALL)
        return int(zeros.min()), int(zeros.max())

    def _zeros(self, which: Which, scales: Floats) -> NDArray[np.int16]:
        if isinstance(self.zeros, int):
            return np.full(scales.shape, self.zeros, np.int16)
        return self.zeros(which).astype(np.int16)


@dataclass(eq=False)
class Scaled(Form):
    """Numbers with a scale for each block of so many rows and columns.

    values   [rows, columns] as floats
    scales   [rows of blocks, blocks in a row]
    """

    shape: tuple[int, int]
    block: tuple[int, int]
    values: Reader
    scales: Reader
    kept: str = ""

    def rows(self, which: Which) -> Floats:
        """See `Form`."""
        down, across = self.block
        of_rows = np.arange(self.shape[0])[which] // down
        values = np.array(self.values(which), np.float32)
        scales = self.scales(of_rows)
        with np.errstate(over="ignore", invalid="ignore"):  # whoever packs them refuses what is not finite
            if self.shape[1] % across:
                values *= np.repeat(scales, across, axis=1)[:, : self.shape[1]]
            else:
                blocks = values.reshape(*scales.shape, across)
                blocks *= scales[..., None]
        return values


@dataclass(eq=False)
class Stack(Form):
    """Matrices of one shape, one for each expert."""

    shape: tuple[int, int, int]
    matrix: Callable[[int], Form]
    kept: str = ""

    def at(self, index: int) -> Form:
        """See `Form`."""
        return self.matrix(index)

    def whole(self) -> Floats:
        """See `Form`."""
        found = np.empty(self.shape, np.float32)
        for index in range(self.shape[0]):
            found[index] = self.at(index).whole()
        return found


class Turned(Form):
    """A matrix of which the rows are what the files have as columns."""

    def __init__(self, other: Form) -> None:
        self.shape = other.shape[::-1]
        self._other = other

    @property
    def kept(self) -> str:
        """See `Form`."""
        return self._other.kept

    def rows(self, which: Which) -> Floats:
        """See `Form`."""
        return self._other.whole().T[which]

    def transposed(self) -> Form:
        """See `Form`."""
        return self._other
