"""From a checkpoint to packed blocks and ends, one matrix at a time: the unpacked span is never held."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from node.native.blocks import BlockWeights
from node.native.checkpoint import NativeCheckpoint
from node.native.kernel import Kernel
from node.native.names import (
    EMBEDDING,
    SINKS,
    Part,
    block_matrices,
    block_prefix,
    choice_bias,
    expert_matrices,
    has_experts,
    head_name,
    norm_names,
    norm_tensors,
)
from node.native.packed import Kind, Matrix, Norm
from node.native.precision import kept_kind, matrix_kinds
from node.native.tensors import StoredRows, TurnedRows
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
        self._checkpoint.rows(
            0, EMBEDDING
        ).check()  # by a mapping of its own, which goes with all that it touched
        return self._checkpoint.rows(0, EMBEDDING)

    def head(self) -> HeadWeights:
        """The head, packed."""
        stage = self._checkpoint.manifest.stages - 1
        shape = self._plan.shape
        rows = self._checkpoint.rows(stage, head_name(self._plan))
        size = shape.vocabulary, shape.hidden
        matrix = self._pack(self._checkpoint.precision.head, size, [rows])
        return HeadWeights(self._norm(stage, "model.norm", shape.hidden), matrix)

    def block(self, index: int) -> BlockWeights:
        """A block, packed."""
        plan, precision, prefix = self._plan, self._checkpoint.precision, block_prefix(index)
        kinds = matrix_kinds(precision)
        packed = {
            field: self._matrix(kinds[field], index, parts)
            for field, parts in block_matrices(plan, index).items()
        }
        norms = {
            field: self._norm(1 + index, f"{prefix}{name}", size)
            for field, (name, size) in norm_names(plan).items()
        }
        sinks = self._checkpoint.rows(1 + index, prefix + SINKS).vector() if plan.shape.sinks else None
        choice = choice_bias(plan, index)
        return BlockWeights(
            qkv=packed["qkv"],
            out=packed["out"],
            gate_up=packed.get("gate_up"),
            down=packed.get("down"),
            router=packed.get("router"),
            shared_gate=packed.get("shared_gate"),
            query_up=packed.get("query_up"),
            key_up=packed.get("key_up"),
            value_up=packed.get("value_up"),
            experts=self._experts(index),
            choice_bias=self._checkpoint.rows(1 + index, prefix + choice).vector() if choice else None,
            sinks=sinks,
            attention_norm=norms.get("attention_norm"),
            attention_post_norm=norms.get("attention_post_norm"),
            mlp_norm=norms.get("mlp_norm"),
            mlp_post_norm=norms.get("mlp_post_norm"),
            query_norm=norms.get("query_norm"),
            key_norm=norms.get("key_norm"),
        )

    def _experts(self, index: int) -> tuple[tuple[Matrix, Matrix], ...]:
        experts, kind = self._plan.shape.experts, self._checkpoint.precision.mlp
        if experts is None or not has_experts(self._plan, index):
            return ()
        parts = (expert_matrices(self._plan, expert) for expert in range(experts.count))
        return tuple(
            (self._matrix(kind, index, gate_up), self._matrix(kind, index, down)) for gate_up, down in parts
        )

    def _matrix(self, kind: Kind, index: int, parts: Sequence[Part]) -> Matrix:
        """Parts below one another as one matrix."""
        stage, prefix = 1 + index, block_prefix(index)
        weights: list[StoredRows | TurnedRows] = []
        biases = []
        biased = any(part.bias for part in parts)
        for part in parts:
            stored = self._checkpoint.rows(stage, prefix + part.weight)
            if part.stacked:
                stored = stored.at(part.index)
            if part.transposed:
                stored = stored.transposed()
            rows = stored.ordered(part.rows, part.columns)
            weights.append(TurnedRows(rows) if part.turned else rows)
            if part.bias:
                bias = self._checkpoint.rows(stage, prefix + part.bias)
                biases.append((bias.at(part.index) if part.stacked else bias).ordered(part.rows).vector())
            elif biased:
                biases.append(np.zeros(rows.shape[0], np.float32))
        size = sum(rows.shape[0] for rows in weights), weights[0].shape[1]
        return self._pack(kind, size, weights, np.concatenate(biases) if biases else None)

    def _pack(
        self,
        kind: Kind,
        size: tuple[int, int],
        parts: Sequence[StoredRows | TurnedRows],
        bias: NDArray[np.float32] | None = None,
    ) -> Matrix:
        kind = kept_kind(
            kind, {part.stored for part in parts}, all(part.is_coded(Kind.INT4) for part in parts)
        )
        try:
            if all(part.is_coded(kind) for part in parts):
                return self._kernel.pack_coded(
                    kind, size, chain.from_iterable(part.coded(kind) for part in parts), bias
                )
            return self._kernel.pack(kind, size, chain.from_iterable(part.pieces() for part in parts), bias)
        except BadCheckpoint as error:
            for part in parts:
                part.check()
            raise BadCheckpoint(f"{' or '.join(part.name for part in parts)}: {error}") from error

    def _norm(self, stage: int, name: str, size: int) -> Norm:
        tensors = norm_tensors(self._plan, name, size)
        weight, bias = (
            self._checkpoint.rows(stage, f"{name}.{what}").vector() if f"{name}.{what}" in tensors else None
            for what in ("weight", "bias")
        )
        if weight is None:
            return Norm(np.ones(size, np.float32))
        return Norm(weight + np.float32(self._plan.family.norm_offset), bias)
