"""Groups that come as codes with steps, as the kernels want them: what `quant.c` does once it has codes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from node.native.packed import GROUP, TILE, Kind, padded
from protocol.errors import BadCheckpoint

# Rows in groups: codes [n, groups, 32], signed where they are of eight bits, and of each group [n, groups] the step
# and, where codes are of four, the least.
Coded = tuple[NDArray[np.uint8] | NDArray[np.int8], NDArray[np.float32], NDArray[np.float32] | None]


def lay_out(kind: Kind, rows: Coded) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Bytes of codes, and of scales with minima; rows of zeros fill a tile.

    Raises: BadCheckpoint, if a scale or a minimum is no number of 16 bits.
    """
    codes, steps, minima = rows
    with np.errstate(over="ignore"):
        halves = np.stack((steps,) if minima is None else (steps, minima)).astype("<f2")
    if not np.isfinite(halves).all():
        raise BadCheckpoint(f"a weight is not finite, or too large for {kind.name.lower()}")
    count, groups = steps.shape
    missing = padded(count) - count
    whole = np.pad(codes.view(np.uint8), ((0, missing), (0, 0), (0, 0)))
    halves = np.pad(halves, ((0, 0), (0, missing), (0, 0)))
    scales = halves.reshape(len(halves), -1, TILE, groups).transpose(1, 3, 0, 2)
    packed = _fours(whole, groups) if kind is Kind.INT4 else _eights(whole, groups)
    return packed.reshape(-1), np.ascontiguousarray(scales).view(np.uint8).reshape(-1)


def _fours(codes: NDArray[np.uint8], groups: int) -> NDArray[np.uint8]:
    # Of each eight codes the first four lie in the low halves of four bytes, the others in the high ones.
    runs = codes.reshape(-1, TILE, groups, GROUP // 8, 2, 4)
    highs = np.left_shift(runs[..., 1, :], 4, dtype=np.uint8)
    return np.asarray((runs[..., 0, :] | highs).transpose(0, 2, 3, 1, 4))


def _eights(codes: NDArray[np.uint8], groups: int) -> NDArray[np.uint8]:
    # From 0 on: what is added is the highest bit turned.
    unsigned = codes ^ np.uint8(128)
    return unsigned.reshape(-1, TILE, groups, GROUP // 4, 4).transpose(0, 2, 3, 1, 4)
