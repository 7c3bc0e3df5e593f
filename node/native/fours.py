"""Groups of four bits that come as such, as the kernels want them: what `quant.c` does once it has codes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from node.native.packed import GROUP, TILE, padded
from protocol.errors import BadCheckpoint


def lay_out(
    codes: NDArray[np.uint8], steps: NDArray[np.float32], minima: NDArray[np.float32]
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Bytes of codes, and of scales with minima, of rows [n, groups, 32] and [n, groups]; rows of zeros fill a tile.

    Raises: BadCheckpoint, if a scale or a minimum is no number of 16 bits.
    """
    with np.errstate(over="ignore"):
        halves = np.stack((steps, minima)).astype("<f2")
    if not np.isfinite(halves).all():
        raise BadCheckpoint("a weight is not finite, or too large for int4")
    rows, groups = steps.shape
    missing = padded(rows) - rows
    codes = np.pad(codes, ((0, missing), (0, 0), (0, 0)))
    halves = np.pad(halves, ((0, 0), (0, missing), (0, 0)))
    # Of each eight codes the first four lie in the low halves of four bytes, the others in the high ones.
    runs = codes.reshape(-1, TILE, groups, GROUP // 8, 2, 4)
    highs = np.left_shift(runs[..., 1, :], 4, dtype=np.uint8)
    packed = (runs[..., 0, :] | highs).transpose(0, 2, 3, 1, 4)
    scales = halves.reshape(2, -1, TILE, groups).transpose(1, 3, 0, 2)
    return packed.reshape(-1), np.ascontiguousarray(scales).view(np.uint8).reshape(-1)
