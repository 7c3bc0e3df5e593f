"""How the tensors of a model are called in its checkpoint, their shapes, and how the kernels want their rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any, Final

import numpy as np

from node.native.family import Plan
from node.native.tensors import Order

SINKS: Final = "self_attn.sinks"
EMBEDDING: Final = "model.embed_tokens.weight"
Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """Rows of a matrix, stored as one tensor, maybe with a bias. Orders that are None leave things as they are.

    stacked, index   so many matrices lie in one tensor, this is one of them; 0: it has its own
    transposed       it is stored with its columns as rows
    turned           the columns of those rows are the rows of the matrix
    """

    weight: str
    outs: int
    ins: int
    bias: str = ""
    rows: Order | None = None
    columns: Order | None = None
    stacked: int = 0
    index: int = 0
    transposed: bool = False
    turned: bool = False

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns, in their order."""
        outs = self.outs if self.rows is None else len(self.rows)
        ins = self.ins if self.columns is None else len(self.columns)
        return (ins, outs) if self.turned else (outs, ins)

    def tensors(self, prefix: str) -> Shapes:
        """Its tensors, in a block whose names begin with `prefix`."""
        stack = (self.stacked,) if self.stacked else ()
        shape = (self.ins, self.outs) if self.transposed else (self.outs, self.ins)
        found: dict[str, tuple[int, ...]] = {prefix + self.weight: stack + shape}
        if self.bias:
            found[prefix + self.bias] = (*stack, self.outs)
        return found


def block_prefix(index: int) -> str:
    """What the names of a block's tensors begin with."""
    return f"model.layers.{index}."


def end_tensors(plan: Plan) -> tuple[Shapes, Shapes]:
    """Those of the embedding, and those of the head."""
    shape = plan.shape
    embedding = {EMBEDDING: (shape.vocabulary, shape.hidden)}
    return embedding, {
        **norm_tensors(plan, "model.norm", shape.hidden),
        head_name(plan): (shape.vocabulary, shape.hidden),
    }


def head_name(plan: Plan) -> str:
    """The matrix of the head, which may be the embedding's."""
    return EMBEDDING if plan.tied else "lm_head.weight"


def block_matrices(plan: Plan, index: int) -> Mapping[str, tuple[Part, ...]]:
    """Of each matrix of a block but its experts, by its field in `BlockWeights`, the parts below one another."""
    shape, family = plan.shape, plan.family
    found = _latent_matrices(plan) if plan.latent_head else {"qkv": _qkv(plan), "out": _out(plan)}
    if not has_experts(plan, index):
        return {**found, **_mlp(plan, family.gate_up, family.down, shape.intermediate)}
    routed, experts = family.routed, shape.experts
    assert routed is not None
    assert experts is not None
    bias = f"{routed.router}.bias" if routed.biased else ""
    found["router"] = (Part(f"{routed.router}.weight", experts.count, shape.hidden, bias),)
    if routed.shared is not None and experts.shared:
        gate_up, down, gate = routed.shared
        found.update(_mlp(plan, gate_up, down, experts.shared))
        if gate:
            found["shared_gate"] = (Part(f"{gate}.weight", 1, shape.hidden),)
    return found


def has_experts(plan: Plan, index: int) -> bool:
    """Whether this block has."""
    return plan.shape.experts is not None and plan.shape.experts.blocks[index]


def choice_bias(plan: Plan, index: int) -> str:
    """What is added to the marks of a block's experts, "" where nothing is."""
    routed = plan.family.routed
    if routed is None or not routed.lone_shares or not has_experts(plan, index):
        return ""
    return f"{routed.router}.e_score_correction_bias"


def is_left_over(plan: Plan, name: str) -> bool:
    """Whether no answer needs a tensor: of a block that guesses ahead, of frequencies, of a head that is tied."""
    ahead = block_prefix(plan.shape.blocks) if plan.family.routed and plan.family.routed.lone_shares else ""
    if (ahead and name.startswith(ahead)) or name.endswith(".rotary_emb.inv_freq"):
        return True
    return plan.tied and name == "lm_head.weight"


def expert_matrices(plan: Plan, expert: int) -> tuple[tuple[Part, ...], tuple[Part, ...]]:
    """The parts of one expert's gate_up and down."""
    shape, routed, experts = plan.shape, plan.family.routed, plan.shape.experts
    assert routed is not None
    assert experts is not None
    inside = experts.intermediate

    def part(name: str, outs: int, ins: int, rows: Order | None = None) -> Part:
        own = name.format(expert)
        bias = f"{own}_bias" if routed.biased else ""
        stacked = experts.count if own == name else 0
        return Part(own, outs, ins, bias, rows, None, stacked, expert, routed.transposed)

    order = np.arange(2 * inside).reshape(-1, 2).T.reshape(-1) if routed.transposed else None
    outs = 2 * inside // len(routed.gate_up)
    gate_up = tuple(part(name, outs, shape.hidden, order) for name in routed.gate_up)
    return gate_up, (part(routed.down, shape.hidden, inside),)


def _qkv(plan: Plan) -> tuple[Part, ...]:
    shape, names, dim = plan.shape, plan.family.qkv, plan.head_dim
    turning, staying = _head_order(plan), _padding(plan)
    heads = (shape.heads, shape.kv_heads, shape.kv_heads)
    orders = [
        _in_heads(order, count, dim) for order, count in zip((turning, turning, staying), heads, strict=True)
    ]
    if len(names) > 1:
        return tuple(
            Part(
                f"{name}.weight", count * dim, shape.hidden, f"{name}.bias" if plan.query_bias else "", order
            )
            for name, count, order in zip(names, heads, orders, strict=True)
        )
    (name,) = names
    assert not plan.family.neighbours
    order = _in_heads(staying, sum(heads), dim)
    return (
        Part(
            f"{name}.weight", sum(heads) * dim, shape.hidden, f"{name}.bias" if plan.query_bias else "", order
        ),
    )


def _out(plan: Plan) -> tuple[Part, ...]:
    shape, name = plan.shape, "self_attn.o_proj"
    columns = _in_heads(_padding(plan), shape.heads, plan.head_dim)
    bias = f"{name}.bias" if plan.out_bias else ""
    return (Part(f"{name}.weight", shape.hidden, shape.heads * plan.head_dim, bias, columns=columns),)


def _latent_matrices(plan: Plan) -> dict[str, tuple[Part, ...]]:
    """What leads to queries and latents, and from there to what `out` reads."""
    shape, head, latent = plan.shape, plan.latent_head, plan.shape.latent
    assert head is not None
    assert latent is not None
    hidden, heads = shape.hidden, shape.heads
    turning = _padded(head.turning, shape.head_dim - latent.size)
    if plan.family.neighbours:
        turning[: head.turning] = np.arange(head.turning).reshape(-1, 2).T.reshape(-1)
    own = _padded(head.own, latent.own)
    query = np.concatenate((own, np.where(turning < 0, -1, head.own + turning)))
    queries = _in_heads(query, heads, head.query)
    kept = np.concatenate((np.arange(latent.size), np.where(turning < 0, -1, latent.size + turning)))
    names = {name: f"self_attn.{name}_proj" for name in ("q", "q_a", "q_b", "kv_a", "kv_b", "o")}
    names["kv_a"] += "_with_mqa"

    def part(name: str, outs: int, ins: int, biased: bool = False, **orders: Any) -> Part:
        bias = f"{names[name]}.bias" if biased else ""
        return Part(f"{names[name]}.weight", outs, ins, bias, **orders)

    found = {"query_up": (part("q_b", heads * head.query, latent.query_rank, rows=queries),)}
    first = part("q_a", latent.query_rank, hidden, plan.query_bias)
    if not latent.query_rank:
        found, first = {}, part("q", heads * head.query, hidden, rows=queries)
    # Of each head the rows of its key, then those of its value.
    step = head.own + head.value
    both = heads * step, latent.size
    keys = (np.where(own < 0, -1, step * index + own) for index in range(heads))
    value = _padded(head.value, latent.value)
    values = _in_heads(np.where(value < 0, -1, head.own + value), heads, step)
    columns = _in_heads(value, heads, head.value)
    return {
        **found,
        "qkv": (first, part("kv_a", latent.size + head.turning, hidden, plan.query_bias, rows=kept)),
        "key_up": tuple(part("kv_b", *both, rows=rows, turned=True) for rows in keys),
        "value_up": (part("kv_b", *both, rows=values),),
        "out": (part("o", hidden, heads * head.value, plan.out_bias, columns=columns),),
    }


def _mlp(plan: Plan, gate_up: tuple[str, ...], down: str, inside: int) -> dict[str, tuple[Part, ...]]:
    outs, hidden = (1 + plan.shape.gated) * inside // len(gate_up), plan.shape.hidden

    def part(name: str, outs: int, ins: int) -> Part:
        return Part(f"{name}.weight", outs, ins, f"{name}.bias" if plan.mlp_bias else "")

    return {
        "gate_up": tuple(part(name, outs, hidden) for name in gate_up),
        "down": (part(down, hidden, inside),),
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
    if shape.latent is not None:
        found["key_norm"] = ("self_attn.kv_a_layernorm", shape.latent.size)
        if shape.latent.query_rank:
            found["query_norm"] = ("self_attn.q_a_layernorm", shape.latent.query_rank)
    return found


def norm_tensors(plan: Plan, name: str, size: int) -> Shapes:
    """Those of one norm."""
    found = {} if plan.family.norm == "bare" else {f"{name}.weight": (size,)}
    return {**found, f"{name}.bias": (size,)} if plan.family.norm == "biased" else found


def block_tensors(plan: Plan, index: int) -> Shapes:
    """Those of one block."""
    prefix = block_prefix(index)
    found: dict[str, tuple[int, ...]] = {}
    parts = list(chain.from_iterable(block_matrices(plan, index).values()))
    if has_experts(plan, index):
        assert plan.shape.experts is not None
        for expert in range(plan.shape.experts.count):
            parts += chain.from_iterable(expert_matrices(plan, expert))
    for part in parts:
        found.update(part.tensors(prefix))
    if choice := choice_bias(plan, index):
        assert plan.shape.experts is not None
        found[prefix + choice] = (plan.shape.experts.count,)
    if plan.shape.sinks:
        found[f"{prefix}{SINKS}"] = (plan.shape.heads,)
    for name, size in norm_names(plan).values():
        found.update(norm_tensors(plan, f"{prefix}{name}", size))
    return found


def _padding(plan: Plan) -> Order | None:
    """Of each number of a padded head where it is stored, in a head."""
    if plan.shape.head_dim == plan.head_dim:
        return None
    return _padded(plan.head_dim, plan.shape.head_dim)


def _padded(numbers: int, size: int) -> Order:
    """So many numbers, then zeros up to `size`."""
    order = np.full(size, -1, np.intp)
    order[:numbers] = np.arange(numbers)
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
