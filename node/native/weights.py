"""From a checkpoint to packed blocks and ends, one matrix at a time: the unpacked span is never held."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np

from node.native.blocks import BlockWeights
from node.native.checkpoint import NativeCheckpoint
from node.native.kernel import Kernel
from node.native.names import Part, block_matrices, block_prefix, head_name, norm_names, norm_tensors
from node.native.packed import Kind, Matrix, Norm
from node.native.precision import kept_kind
from node.native.tensors import StoredRows
from protocol.errors import BadCheckpoint


@dataclass(frozen=True, slots=True, eq=False)
class HeadWeights:
    """The last norm and the matrix to logits."""

    norm: Norm
    matrix: Matrix


class Loader:
    """Packs the stages of one checkpoint. Its methods raise BadCheckpoint."""

    def __init__(self, checkpoint: NativeCheckpoint, kernel: Kernel) -> None:
        self._checkpoint = checkpoint
        self._kernel = kernel
        self._plan = checkpoint.plan

    def embedding(self) -> StoredRows:
        """The embedding, as it is stored: its rows are read as they are looked up."""
        return self._checkpoint.rows(0, "model.embed_tokens.weight")

    def head(self) -> HeadWeights:
        """The head, packed."""
        stage = self._checkpoint.manifest.stages - 1
        shape = self._plan.shape
        rows = self._checkpoint.rows(stage, head_name(self._plan))
        size = shape.vocabulary, shape.hidden
        kind = kept_kind(self._checkpoint.precision.head, {rows.stored})
        matrix = self._kernel.pack(kind, size, rows.pieces())
        return HeadWeights(self._norm(stage, "model.norm", shape.hidden), matrix)

    def block(self, index: int) -> BlockWeights:
        """A block, packed."""
        plan, precision = self._plan, self._checkpoint.precision
        parts = block_matrices(plan)
        return BlockWeights(
            qkv=self._matrix(precision.attention, index, parts["qkv"]),
            out=self._matrix(precision.attention, index, parts["out"]),
            gate_up=self._matrix(precision.mlp, index, parts["gate_up"]),
            down=self._matrix(precision.mlp, index, parts["down"]),
            **{
                field: self._norm(1 + index, f"{block_prefix(index)}{name}", size)
                for field, (name, size) in norm_names(plan).items()
            },
        )

    def _matrix(self, kind: Kind, index: int, parts: Sequence[Part]) -> Matrix:
        """Parts below one another as one matrix."""
        stored, biases = [], []
        for part in parts:
            name = f"{block_prefix(index)}{part.name}"
            stored.append(self._checkpoint.rows(1 + index, f"{name}.weight").ordered(part.rows, part.columns))
            if part.biased:
                biases.append(self._checkpoint.rows(1 + index, f"{name}.bias").ordered(part.rows).vector())
        size = sum(rows.shape[0] for rows in stored), stored[0].shape[1]
        kind = kept_kind(kind, {rows.stored for rows in stored})
        pieces = chain.from_iterable(rows.pieces() for rows in stored)
        try:
            return self._kernel.pack(kind, size, pieces, np.concatenate(biases) if biases else None)
        except BadCheckpoint as error:
            names = " and ".join(f"{block_prefix(index)}{part.name}.weight" for part in parts)
            raise BadCheckpoint(f"{self._checkpoint.name}: in {names}: {error}") from error

    def _norm(self, stage: int, name: str, size: int) -> Norm:
        tensors = norm_tensors(self._plan, name, size)
        weight, bias = (
            self._checkpoint.rows(stage, f"{name}.{what}").vector() if f"{name}.{what}" in tensors else None
            for what in ("weight", "bias")
        )
        if weight is None:
            return Norm(np.ones(size, np.float32))
        return Norm(weight + np.float32(self._plan.family.norm_offset), bias)
