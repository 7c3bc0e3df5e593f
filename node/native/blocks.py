"""Consecutive blocks of one model, packed, and rows of sessions through them."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from node.native.cache import PagedCache
from node.native.kernel import Kernel, LayerStruct, ModelStruct
from node.native.packed import Matrix, address
from node.native.shape import Shape

Vector = NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class BlockWeights:
    """One block. Norms that it has not are None."""

    qkv: Matrix
    out: Matrix
    gate_up: Matrix
    down: Matrix
    attention_norm: Vector | None
    attention_post_norm: Vector | None
    mlp_norm: Vector | None
    mlp_post_norm: Vector | None
    query_norm: Vector | None
    key_norm: Vector | None

    @property
    def nbytes(self) -> int:
        """Memory that it takes."""
        norms = (vector.nbytes for vector in self.norms() if vector is not None)
        return sum(matrix.nbytes for matrix in (self.qkv, self.out, self.gate_up, self.down)) + sum(norms)

    def norms(self) -> tuple[Vector | None, ...]:
        """All norms, in the order of `LayerStruct`."""
        return (
            self.attention_norm,
            self.attention_post_norm,
            self.mlp_norm,
            self.mlp_post_norm,
            self.query_norm,
            self.key_norm,
        )


class Blocks:
    """Blocks `first` to `first + len(weights)` of a model of this shape."""

    def __init__(
        self, kernel: Kernel, shape: Shape, first: int, weights: Sequence[BlockWeights], kv_bytes: int
    ) -> None:
        self.first = first
        self.kv_bytes = kv_bytes
        self._kernel = kernel
        self._shape = shape
        self._weights = tuple(weights)  # the structures hold addresses only
        self._tables = tuple(table.frequencies for table in shape.rotary_tables)
        self._layers = (LayerStruct * len(weights))(
            *(_layer(shape, first + index, block) for index, block in enumerate(weights))
        )

    def __len__(self) -> int:
        return len(self._weights)

    @property
    def nbytes(self) -> int:
        """Memory that the weights take."""
        return sum(block.nbytes for block in self._weights)

    def run(
        self, states: NDArray[np.float32], rows: Sequence[tuple[PagedCache, int, int]], first: int, count: int
    ) -> None:
        """Run states [rows, hidden] in place through `count` blocks from block `first` on.

        rows: in the order of the states, a session's cache, which has room for them, the position of its first row,
        and how many rows it has.
        """
        positions = np.concatenate([np.arange(at, at + n, dtype=np.int32) for _, at, n in rows])
        sessions = np.repeat(np.arange(len(rows), dtype=np.int32), [n for _, _, n in rows])
        pages = [cache.table for cache, _, _ in rows]
        model = self._model(first)
        self._kernel.blocks(model, count, states, positions, sessions, pages)

    def _model(self, first: int) -> ModelStruct:
        shape = self._shape
        gains = [table.gain for table in shape.rotary_tables]
        missing = 2 - len(gains)
        return ModelStruct(
            shape.hidden,
            shape.heads,
            shape.kv_heads,
            shape.head_dim,
            shape.intermediate,
            shape.rotary_dims,
            shape.activation,
            int(shape.wide_norms),
            self.kv_bytes,
            shape.epsilon,
            shape.query_scale,
            shape.residual_scale,
            (ctypes.c_float * 2)(*gains, *[1.0] * missing),
            (ctypes.c_void_p * 2)(*(address(table) for table in self._tables), *[None] * missing),
            ctypes.addressof(self._layers) + (first - self.first) * ctypes.sizeof(LayerStruct),
        )


def _layer(shape: Shape, index: int, block: BlockWeights) -> LayerStruct:
    matrices = (matrix.struct() for matrix in (block.qkv, block.out, block.gate_up, block.down))
    norms = (None if vector is None else address(vector) for vector in block.norms())
    return LayerStruct(*matrices, *norms, shape.rotary_of[index], shape.windows[index])
