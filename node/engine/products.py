"""A matrix in few bits and the product of rows with it, by the native kernels: what torch's engine has on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from node.native.kernel import Kernel
from node.native.packed import TILE, Kind, Matrix

# Floats of a weight that are copied at once while it is packed: some MiB.
_PIECE: Final = 1 << 20


class Product(Protocol):
    """A packed matrix [outs, ins], with a bias or without."""

    @property
    def nbytes(self) -> int:
        """Memory that it takes."""

    def __call__(self, states: torch.Tensor) -> torch.Tensor:
        """Rows [rows, ins] to rows [rows, outs] of the same dtype."""


# A weight [outs, ins] and a bias [outs] or None, in a kind of few bits. Raises BadCheckpoint, if it is not finite.
Pack = Callable[[Kind, torch.Tensor, torch.Tensor | None], Product]


class KernelProduct:
    """See `Product`; in fp32, each row by itself."""

    def __init__(self, kernel: Kernel, matrix: Matrix) -> None:
        self._kernel = kernel
        self.matrix = matrix

    @property
    def nbytes(self) -> int:
        """See `Product`."""
        return self.matrix.nbytes

    def __call__(self, states: torch.Tensor) -> torch.Tensor:
        """See `Product`."""
        given = states.float().contiguous().numpy()
        out = torch.from_numpy(self._kernel.product(self.matrix, given))
        return out[:, : self.matrix.outs].contiguous().to(states.dtype)


def on_kernels(kernel: Kernel) -> Pack:
    """How weights are packed for these kernels."""

    def pack(kind: Kind, weight: torch.Tensor, bias: torch.Tensor | None) -> Product:
        shape = weight.shape[0], weight.shape[1]
        matrix = kernel.pack(kind, shape, _pieces(weight), None if bias is None else _floats(bias))
        return KernelProduct(kernel, matrix)

    return pack


def _floats(values: torch.Tensor) -> NDArray[np.float32]:
    return values.detach().float().numpy()


def _pieces(weight: torch.Tensor) -> Iterator[NDArray[np.float32]]:
    """Rows in order, some at a time: whole tiles, but for the last."""
    step = max(TILE, _PIECE // weight.shape[1] // TILE * TILE)
    for row in range(0, len(weight), step):
        yield _floats(weight[row : row + step])
