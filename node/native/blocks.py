"""Consecutive blocks of one model, packed, and rows of sessions through them."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from node.native.cache import PagedCache
from node.native.kernel import ExpertStruct, Kernel, LayerStruct, ModelStruct
from node.native.packed import LinearStruct, Matrix, Norm, NormStruct, address
from node.native.shape import Experts, Shape

Vector = NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class BlockWeights:
    """One block. What it has not is None.

    query_up     queries of what they are made of, where that is not the states
    key_up       of latents: of each head [latent, own], what takes its query to them
    value_up     of latents: of each head [value, latent], what makes its value of them
    experts      of each gate_up and down; what a router chooses among
    choice_bias  of each expert what is added to its mark
    sinks        of each head the score of what is not there
    """

    qkv: Matrix
    out: Matrix
    gate_up: Matrix | None = None
    down: Matrix | None = None
    router: Matrix | None = None
    shared_gate: Matrix | None = None
    query_up: Matrix | None = None
    key_up: Matrix | None = None
    value_up: Matrix | None = None
    experts: tuple[tuple[Matrix, Matrix], ...] = ()
    choice_bias: Vector | None = None
    sinks: Vector | None = None
    attention_norm: Norm | None = None
    attention_post_norm: Norm | None = None
    mlp_norm: Norm | None = None
    mlp_post_norm: Norm | None = None
    query_norm: Norm | None = None
    key_norm: Norm | None = None

    @property
    def nbytes(self) -> int:
        """Memory that it takes."""
        parts = (*self.matrices(), *self.norms(), self.choice_bias, self.sinks)
        return sum(part.nbytes for part in (*parts, *chain.from_iterable(self.experts)) if part is not None)

    def matrices(self) -> tuple[Matrix | None, ...]:
        """All but those of experts, in the order of `LayerStruct`."""
        attention = (self.query_up, self.key_up, self.value_up)
        return (self.qkv, self.out, self.gate_up, self.down, self.router, self.shared_gate, *attention)

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
        self._experts = tuple(
            (ExpertStruct * len(block.experts))(
                *(ExpertStruct(gate_up.struct(), down.struct()) for gate_up, down in block.experts)
            )
            for block in weights
        )
        self._layers = (LayerStruct * len(weights))(
            *(
                _layer(shape, first + index, block, experts)
                for index, (block, experts) in enumerate(zip(weights, self._experts, strict=True))
            )
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
        experts, latent = shape.experts, shape.latent
        return ModelStruct(
            shape.hidden,
            shape.heads,
            shape.kv_heads,
            shape.head_dim,
            shape.intermediate if experts is None else max(shape.intermediate, experts.shared),
            shape.rotary_dims,
            *((0,) * 7 if experts is None else _routing(experts)),
            shape.activation,
            int(shape.gated),
            int(shape.centred),
            int(shape.wide_norms),
            int(shape.late_norms),
            int(shape.side_by_side),
            self.kv_bytes,
            *((0,) * 4 if latent is None else (latent.size, latent.query_rank, latent.own, latent.value)),
            shape.epsilon,
            shape.query_scale,
            shape.residual_scale,
            shape.score_cap,
            1.0 if experts is None else experts.scale,
            shape.clip,
            shape.epsilon if latent is None else latent.epsilon,
            (ctypes.c_float * 2)(*gains, *[1.0] * missing),
            (ctypes.c_void_p * 2)(*(address(table) for table in self._tables), *[None] * missing),
            ctypes.addressof(self._layers) + (first - self.first) * ctypes.sizeof(LayerStruct),
        )


def _routing(experts: Experts) -> tuple[int, ...]:
    groups, shares = (experts.groups, experts.groups_per_row), (experts.whole_shares, experts.lone_shares)
    return (experts.intermediate, experts.count, experts.per_row, *groups, *map(int, shares))


def _layer(shape: Shape, index: int, block: BlockWeights, experts: ctypes.Array[ExpertStruct]) -> LayerStruct:
    matrices = (LinearStruct() if matrix is None else matrix.struct() for matrix in block.matrices())
    norms = (NormStruct() if norm is None else norm.struct() for norm in block.norms())
    return LayerStruct(
        *matrices,
        ctypes.addressof(experts) if experts else None,
        None if block.choice_bias is None else address(block.choice_bias),
        None if block.sinks is None else address(block.sinks),
        *norms,
        shape.rotary_of[index],
        len(block.experts),
        shape.windows[index],
    )
