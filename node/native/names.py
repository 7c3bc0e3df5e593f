"""How the tensors of a model are called in its checkpoint, and their shapes."""

from __future__ import annotations

from collections.abc import Mapping

from node.native.family import Plan

Shapes = Mapping[str, tuple[int, ...]]


def block_prefix(index: int) -> str:
    """What the names of a block's tensors begin with."""
    return f"model.layers.{index}."


def end_tensors(plan: Plan) -> tuple[Shapes, Shapes]:
    """Those of the embedding, and those of the head."""
    shape = plan.shape
    embedding = {"model.embed_tokens.weight": (shape.vocabulary, shape.hidden)}
    return embedding, {
        "model.norm.weight": (shape.hidden,),
        head_name(plan): (shape.vocabulary, shape.hidden),
    }


def head_name(plan: Plan) -> str:
    """The matrix of the head, which may be the embedding's."""
    return "model.embed_tokens.weight" if plan.tied else "lm_head.weight"


def qkv_names(plan: Plan) -> tuple[str, ...]:
    """The projections to queries, keys and values, in this order, without "weight" and "bias"."""
    if plan.family.fused:
        return ("self_attn.qkv_proj",)
    return ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")


def gate_up_names(plan: Plan) -> tuple[str, ...]:
    """The projections to the gate and to what it lets through."""
    return ("mlp.gate_up_proj",) if plan.family.fused else ("mlp.gate_proj", "mlp.up_proj")


def norm_names(plan: Plan) -> Mapping[str, tuple[str, int]]:
    """Of each norm that a block has, by its field in `BlockWeights`, the name and the size."""
    shape = plan.shape
    found = {field: (name, shape.hidden) for field, name in plan.family.norms.items()}
    if plan.family.query_norms:
        queries, keys = (shape.heads, shape.kv_heads) if shape.wide_norms else (1, 1)
        found["query_norm"] = ("self_attn.q_norm", queries * shape.head_dim)
        found["key_norm"] = ("self_attn.k_norm", keys * shape.head_dim)
    return found


def block_tensors(plan: Plan, index: int) -> Shapes:
    """Those of one block."""
    shape, prefix = plan.shape, block_prefix(index)
    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    qkv = (queries + 2 * keys,) if plan.family.fused else (queries, keys, keys)
    gate_up = (2 * shape.intermediate,) if plan.family.fused else (shape.intermediate,) * 2
    matrices = [
        *(
            (name, outs, shape.hidden, plan.query_bias)
            for name, outs in zip(qkv_names(plan), qkv, strict=True)
        ),
        ("self_attn.o_proj", shape.hidden, queries, plan.out_bias),
        *(
            (name, outs, shape.hidden, plan.mlp_bias)
            for name, outs in zip(gate_up_names(plan), gate_up, strict=True)
        ),
        ("mlp.down_proj", shape.hidden, shape.intermediate, plan.mlp_bias),
    ]
    found: dict[str, tuple[int, ...]] = {}
    for name, outs, ins, bias in matrices:
        found[f"{prefix}{name}.weight"] = (outs, ins)
        if bias:
            found[f"{prefix}{name}.bias"] = (outs,)
    for name, size in norm_names(plan).values():
        found[f"{prefix}{name}.weight"] = (size,)
    return found
