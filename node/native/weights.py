"""From a checkpoint to packed blocks and ends, one matrix at a time: the unpacked span is never held."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from node.native.blocks import BlockWeights
from node.native.checkpoint import NativeCheckpoint
from node.native.kernel import Kernel
from node.native.names import block_prefix, gate_up_names, head_name, norm_names, qkv_names
from node.native.packed import Kind, Matrix
from node.native.precision import kept_kind
from node.native.tensors import StoredRows


@dataclass(frozen=True, slots=True, eq=False)
class HeadWeights:
    """The last norm and the matrix to logits."""

    norm: NDArray[np.float32]
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
        return HeadWeights(self._norm(stage, "model.norm.weight"), matrix)

    def block(self, index: int) -> BlockWeights:
        """A block, packed."""
        plan, precision = self._plan, self._checkpoint.precision
        norms = {
            field: self._norm(1 + index, f"{block_prefix(index)}{name}.weight")
            for field, (name, _) in norm_names(plan).items()
        }
        return BlockWeights(
            qkv=self._matrix(precision.attention, index, qkv_names(plan), plan.query_bias),
            out=self._matrix(precision.attention, index, ("self_attn.o_proj",), plan.out_bias),
            gate_up=self._matrix(precision.mlp, index, gate_up_names(plan), plan.mlp_bias),
            down=self._matrix(precision.mlp, index, ("mlp.down_proj",), plan.mlp_bias),
            attention_norm=norms.get("attention_norm"),
            attention_post_norm=norms.get("attention_post_norm"),
            mlp_norm=norms.get("mlp_norm"),
            mlp_post_norm=norms.get("mlp_post_norm"),
            query_norm=norms.get("query_norm"),
            key_norm=norms.get("key_norm"),
        )

    def _matrix(self, kind: Kind, index: int, names: tuple[str, ...], biased: bool) -> Matrix:
        """Projections below one another as one matrix."""
        prefix, stage = block_prefix(index), 1 + index
        parts = [self._checkpoint.rows(stage, f"{prefix}{name}.weight") for name in names]
        bias = None
        if biased:
            biases = [self._checkpoint.rows(stage, f"{prefix}{name}.bias").vector() for name in names]
            bias = np.concatenate(biases)
        size = sum(part.shape[0] for part in parts), parts[0].shape[1]
        kind = kept_kind(kind, {part.stored for part in parts})
        return self._kernel.pack(kind, size, chain.from_iterable(part.pieces() for part in parts), bias)

    def _norm(self, stage: int, name: str) -> NDArray[np.float32]:
        return self._checkpoint.rows(stage, name).vector() + np.float32(self._plan.family.norm_offset)
