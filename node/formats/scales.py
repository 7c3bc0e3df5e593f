"""Scales: one for a whole matrix, for each row, for each group of columns, or for each block."""

from __future__ import annotations

from typing import Final

import numpy as np

from node.formats.form import Columns, Reader
from node.formats.raw import FLOATS, Floats, Raw, Which
from protocol.errors import BadCheckpoint

_DTYPES: Final = (*FLOATS, "F8_E8M0")
Block = tuple[int, int]


def matrix_shape(weight: Raw) -> tuple[int, int]:
    """Its rows and columns. Raises: BadCheckpoint, if it has more than these, or less."""
    if len(weight.shape) != 2 or not all(weight.shape):
        raise BadCheckpoint(f"{weight.name} has the shape {list(weight.shape)}, which is no matrix")
    return weight.shape[0], weight.shape[1]


def grid_of(shape: tuple[int, int], block: Block) -> tuple[int, int]:
    """Blocks below one another and beside one another, the last ones maybe smaller."""
    return -(-shape[0] // block[0]), -(-shape[1] // block[1])


def scales_of(
    shape: tuple[int, int], scale: Raw, block: Block | None = None, dtypes: tuple[str, ...] = _DTYPES
) -> tuple[Block, Reader]:
    """Of a matrix of this shape the rows and columns that share a scale, and the scales by rows of blocks.

    block: as config.json has it; goes before what else the shape of `scale` might mean. Raises: BadCheckpoint.
    """
    outs, ins = shape
    scale.require(dtypes)
    if block is not None and scale.shape == grid_of(shape, block):
        return block, scale.floats
    if scale.shape in ((), (1,), (1, 1)):

        def one(which: Which) -> Floats:
            return np.broadcast_to(scale.floats().reshape(1, 1), (len(np.arange(outs)[which]), 1))

        return (1, ins), one
    if scale.shape in ((outs,), (outs, 1)):
        return (1, ins), lambda which: scale.floats(which).reshape(-1, 1)
    if len(scale.shape) == 2 and scale.shape[0] == outs and scale.shape[1] and ins % scale.shape[1] == 0:
        return (1, ins // scale.shape[1]), scale.floats
    raise BadCheckpoint(
        f"{scale.name} has the shape {list(scale.shape)}, which does not fit {outs} x {ins} weights"
    )


def columns_of(order: Raw, groups: int) -> Columns:
    """Of each column its group; None where those are neighbours, or nothing is said. Raises: BadCheckpoint."""
    columns = order.array.astype(np.intp)
    if not columns.size or (columns == -1).all():
        return None
    if np.array_equal(columns, np.arange(len(columns)) // (len(columns) // groups)):
        return None
    if columns.min() < 0 or columns.max() >= groups:
        raise BadCheckpoint(f"{order.name} names groups beyond the {groups} that there are")
    return columns
