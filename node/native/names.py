"""How the tensors of a model are called in its checkpoint, their shapes, and how the kernels want their rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from node.native.family import Plan
from node.native.tensors import Order

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """Rows of a matrix, stored as one tensor, maybe with a bias. Orders that are None leave things as they are."""

    name: str
    outs: int
    ins: int
    biased: bool
    rows: Order | None = None
    columns: Order | None = None

    def tensors(self, prefix: str) -> Shapes:
        """Its tensors, in a block whose names begin with `prefix`."""
        found: dict[str, tuple[int, ...]] = {f"{prefix}{self.name}.weight": (self.outs, self.ins)}
        if self.biased:
            found[f"{prefix}{self.name}.bias"] = (self.outs,)
        return found


def block_prefix(index: int) -> str:
    """What the names of a block's tensors begin with."""
    return f"model.layers.{index}."


def end_tensors(plan: Plan) -> tuple[Shapes, Shapes]:
    """Those of the embedding, and those of the head."""
    shape = plan.shape
    embedding = {"model.embed_tokens.weight": (shape.vocabulary, shape.hidden)}
    return embedding, {
        **norm_tensors(plan, "model.norm", shape.hidden),
        head_name(plan): (shape.vocabulary, shape.hidden),
    }


def head_name(plan: Plan) -> str:
    """The matrix of the head, which may be the embedding's."""
    return "model.embed_tokens.weight" if plan.tied else "lm_head.weight"


def block_matrices(plan: Plan) -> Mapping[str, tuple[Part, ...]]:
    """Of each matrix of a block, by its field in `BlockWeights`, the parts that lie below one another."""
    shape, family = plan.shape, plan.family
    queries, keys = shape.heads * plan.head_dim, shape.kv_heads * plan.head_dim
    order = _head_order(plan)
    if len(family.qkv) == 1:
        rows = None if order is None else _in_heads(order, shape.heads + 2 * shape.kv_heads, plan.head_dim)
        qkv = [Part(family.qkv[0], queries + 2 * keys, shape.hidden, plan.query_bias, rows)]
    else:
        padding = _padding(plan)
        qkv = [
            Part(
                name,
                heads * plan.head_dim,
                shape.hidden,
                plan.query_bias,
                _in_heads(own, heads, plan.head_dim),
            )
            for name, heads, own in zip(
                family.qkv,
                (shape.heads, shape.kv_heads, shape.kv_heads),
                (order, order, padding),
                strict=True,
            )
        ]
    entering = (1 + shape.gated) * shape.intermediate // len(family.gate_up)
    return {
        "qkv": tuple(qkv),
        "out": (
            Part(
                "self_attn.o_proj",
                shape.hidden,
                queries,
                plan.out_bias,
                columns=_in_heads(_padding(plan), shape.heads, plan.head_dim),
            ),
        ),
        "gate_up": tuple(Part(name, entering, shape.hidden, plan.mlp_bias) for name in family.gate_up),
        "down": (Part(family.down, shape.hidden, shape.intermediate, plan.mlp_bias),),
    }


def norm_names(plan: Plan) -> Mapping[str, tuple[str, int]]:
    """Of each norm that a block has, by its field in `BlockWeights`, the name and the size."""
    shape, family = plan.shape, plan.family
    found = {field: (name, shape.hidden) for field, name in family.norms.items()}
    if shape.side_by_side:
        found.pop("mlp_norm", None)
    if family.query_norms:
        queries, keys = (shape.heads, shape.kv_heads) if shape.wide_norms else (1, 1)
        found["query_norm"] = (family.query_norm_names[0], queries * plan.head_dim)
        found["key_norm"] = (family.query_norm_names[1], keys * plan.head_dim)
    return found


def norm_tensors(plan: Plan, name: str, size: int) -> Shapes:
    """Those of one norm."""
    found = {} if plan.family.norm == "bare" else {f"{name}.weight": (size,)}
    return {**found, f"{name}.bias": (size,)} if plan.family.norm == "biased" else found


def block_tensors(plan: Plan, index: int) -> Shapes:
    """Those of one block."""
    prefix = block_prefix(index)
    found: dict[str, tuple[int, ...]] = {}
    for parts in block_matrices(plan).values():
        for part in parts:
            found.update(part.tensors(prefix))
    for name, size in norm_names(plan).values():
        found.update(norm_tensors(plan, f"{prefix}{name}", size))
    return found


def _padding(plan: Plan) -> Order | None:
    """Of each number of a padded head where it is stored, in a head."""
    if plan.shape.head_dim == plan.head_dim:
        return None
    order = np.full(plan.shape.head_dim, -1, np.intp)
    order[: plan.head_dim] = np.arange(plan.head_dim)
    return order


def _head_order(plan: Plan) -> Order | None:
    """The same for queries and keys: neighbours that turn together come half of what turns apart."""
    order = _padding(plan)
    if plan.family.neighbours:
        order = np.arange(plan.shape.head_dim) if order is None else order
        turning = plan.shape.rotary_dims
        order[:turning] = np.concatenate((np.arange(0, turning, 2), np.arange(1, turning, 2)))
    return order


def _in_heads(order: Order | None, heads: int, head_dim: int) -> Order | None:
    """The order of one head, in each of `heads`."""
    if order is None:
        return None
    starts = head_dim * np.arange(heads)[:, None]
    return np.where(order < 0, -1, starts + order).reshape(-1)
