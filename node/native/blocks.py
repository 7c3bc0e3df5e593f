"""Consecutive blocks of one model, packed, and rows of sessions through them."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from node.native.cache import PagedCache
from node.native.kernel import Kernel, LayerStruct, ModelStruct
from node.native.packed import Matrix, Norm, NormStruct, address
from node.native.shape import Shape


@dataclass(frozen=True, slots=True, eq=False)
class BlockWeights:
    """One block. Norms that it has not are None."""

    qkv: Matrix
    out: Matrix
    gate_up: Matrix
    down: Matrix
    attention_norm: Norm | None = None
    attention_post_norm: Norm | None = None
    mlp_norm: Norm | None = None
    mlp_post_norm: Norm | None = None
    query_norm: Norm | None = None
    key_norm: Norm | None = None

    @property
    def nbytes(self) -> int:
        """Memory that it takes."""
        norms = (norm.nbytes for norm in self.norms() if norm is not None)
        return sum(matrix.nbytes for matrix in (self.qkv, self.out, self.gate_up, self.down)) + sum(norms)

    def norms(self) -> tuple[Norm | None, ...]:
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
            int(shape.gated),
            int(shape.centred),
            int(shape.wide_norms),
            int(shape.late_norms),
            int(shape.side_by_side),
            self.kv_bytes,
            shape.epsilon,
            shape.query_scale,
            shape.residual_scale,
            shape.score_cap,
            shape.clip,
            (ctypes.c_float * 2)(*gains, *[1.0] * missing),
            (ctypes.c_void_p * 2)(*(address(table) for table in self._tables), *[None] * missing),
            ctypes.addressof(self._layers) + (first - self.first) * ctypes.sizeof(LayerStruct),
        )


def _layer(shape: Shape, index: int, block: BlockWeights) -> LayerStruct:
    matrices = (matrix.struct() for matrix in (block.qkv, block.out, block.gate_up, block.down))
    norms = (NormStruct() if norm is None else norm.struct() for norm in block.norms())
    return LayerStruct(*matrices, *norms, shape.rotary_of[index], shape.windows[index])
