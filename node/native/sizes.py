"""What the stages of a model take, packed and as they are stored, told from its configuration alone. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Final

from node.formats.scheme import Scheme
from node.native.family import Plan
from node.native.names import (
    EMBEDDING,
    Part,
    Shapes,
    block_matrices,
    block_prefix,
    block_tensors,
    choice_bias,
    end_tensors,
    expert_matrices,
    has_experts,
    head_name,
    norm_names,
)
from node.native.packed import Kind, padded
from node.native.precision import Precision, kept_kind, matrix_kinds
from node.native.tensors import FLOATS

_F32_BYTES: Final = 4
# Of a tensor, by its name, the form that it is stored in: see `StoredRows.stored`.
Stored = Callable[[str], str]


def expected(plan: Plan, scheme: Scheme | None) -> Stored:
    """What config.json says of that."""

    def form(name: str) -> str:
        return scheme.kept(name) if scheme is not None and scheme.converts(name) else plan.stored

    return form


def forms(plan: Plan, scheme: Scheme | None) -> set[str]:
    """Those of all that is no vector, as config.json says."""
    form, ends = expected(plan, scheme), end_tensors(plan)
    blocks = (block_tensors(plan, index) for index in range(plan.shape.blocks))
    return {form(name) for tensors in (*ends, *blocks) for name, shape in tensors.items() if len(shape) > 1}


def stage_bytes(plan: Plan, stage: int, precision: Precision, stored: Stored) -> int:
    """Memory that one stage takes in `precision`, to the byte; the embedding where it is stored in floats."""
    shape = plan.shape
    if stage == 0:
        item = FLOATS.get(stored(EMBEDDING), FLOATS[plan.stored]).itemsize
        return item * shape.vocabulary * shape.hidden
    if stage <= shape.blocks:
        return _block_bytes(plan, stage - 1, precision, stored)
    head = _packed(kept_kind(precision.head, {stored(head_name(plan))}), shape.vocabulary, shape.hidden)
    return head + _norm_bytes(plan, shape.hidden)


def stored_bytes(plan: Plan, stage: int, scheme: Scheme | None = None) -> int:
    """Bytes of one stage's tensors in the checkpoint's files; in the forms of a scheme, about so many."""
    ends = end_tensors(plan)
    if 0 < stage <= plan.shape.blocks:
        return _tensor_bytes(plan, block_tensors(plan, stage - 1), scheme)
    return _tensor_bytes(plan, ends[min(stage, 1)], scheme)


def shared_bytes(plan: Plan, scheme: Scheme | None = None) -> int:
    """Bytes of the files that embedding and head have in common."""
    embedding, head = end_tensors(plan)
    return _tensor_bytes(plan, {name: head[name] for name in embedding.keys() & head.keys()}, scheme)


def _tensor_bytes(plan: Plan, tensors: Shapes, scheme: Scheme | None) -> int:
    size = FLOATS[plan.stored].itemsize
    total = 0
    for name, shape in tensors.items():
        if scheme is not None and len(shape) > 1 and scheme.converts(name):
            # Of a stack each is by itself; which way round they lie makes no difference to speak of.
            total += math.prod(shape[:-2]) * scheme.weight_bytes(name, *shape[-2:])
        else:
            total += math.prod(shape) * size
    return total


def _block_bytes(plan: Plan, index: int, precision: Precision, stored: Stored) -> int:
    def in_block(name: str) -> str:
        return stored(block_prefix(index) + name)

    kinds = matrix_kinds(precision)
    size = sum(
        _matrix_bytes(kinds[field], parts, in_block) for field, parts in block_matrices(plan, index).items()
    )
    experts = plan.shape.experts
    if experts is not None and has_experts(plan, index):
        one = sum(_matrix_bytes(precision.mlp, parts, in_block) for parts in expert_matrices(plan, 0))
        size += experts.count * one
        if choice_bias(plan, index):
            size += _F32_BYTES * experts.count
    if plan.shape.sinks:
        size += _F32_BYTES * plan.shape.heads
    return size + sum(_norm_bytes(plan, numbers) for _, numbers in norm_names(plan).values())


def _matrix_bytes(kind: Kind, parts: Sequence[Part], stored: Stored) -> int:
    """Of parts below one another as one matrix."""
    whole = all(part.columns is None and not part.turned for part in parts)
    outs = sum(part.shape[0] for part in parts)
    ins = parts[0].shape[1]
    kind = kept_kind(kind, {stored(part.weight) for part in parts}, whole)
    bias = _F32_BYTES * padded(outs) if any(part.bias for part in parts) else 0
    return _packed(kind, outs, ins) + bias


def _packed(kind: Kind, outs: int, ins: int) -> int:
    return kind.code_bytes(padded(outs), ins) + kind.scale_bytes(padded(outs), ins)


def _norm_bytes(plan: Plan, numbers: int) -> int:
    return _F32_BYTES * numbers * (2 if plan.family.norm == "biased" else 1)
