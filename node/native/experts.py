"""Which blocks have experts and how many, as config.json says it."""

from __future__ import annotations

from typing import Final, TypedDict

from node.native.families import Flag, Routed
from node.native.fields import Fields
from node.native.packed import GROUP
from node.native.shape import Experts
from protocol.errors import UnsupportedModel

# `model.h` has the same number.
MOST_EXPERTS: Final = 512
# Training alone knows them.
_HARMLESS: Final = ("output_router_logits", "router_aux_loss_coef", "router_jitter_noise")


# The names that their number has in one family or another.
_COUNTS: Final = ("num_local_experts", "num_experts", "n_routed_experts")


def read_experts(routed: Routed, fields: Fields, blocks: int) -> Experts:
    """The experts of a family that has them. Raises: UnsupportedModel."""
    fields.ignore(*_HARMLESS)
    count = _count(fields)
    per_row = fields.count("num_experts_per_tok", most=count)
    intermediate = fields.count(routed.intermediate)
    shared = 0
    if routed.shared is not None and fields.any(routed.shared_intermediate) != 0:
        shared = fields.count(routed.shared_intermediate)
        if routed.grouped:  # told in experts
            shared *= intermediate
    if intermediate % GROUP or shared % GROUP:
        raise UnsupportedModel(f"experts of {intermediate} and {shared} numbers are no multiples of {GROUP}")
    whole = routed.whole_shares
    grouping = _grouping(routed, fields, count, per_row) if routed.grouped else _UNGROUPED
    return Experts(
        count=count,
        per_row=per_row,
        intermediate=intermediate,
        whole_shares=fields.flag(whole.name, whole.absent) if isinstance(whole, Flag) else whole,
        blocks=_blocks(routed, fields, blocks),
        shared=shared,
        lone_shares=routed.lone_shares,
        **grouping,
    )


def _count(fields: Fields) -> int:
    """By either of its names."""
    given = [name for name in _COUNTS if fields.any(name, None) is not None]
    counts = {fields.count(name, most=MOST_EXPERTS) for name in given or ["num_experts"]}
    if len(counts) > 1:
        raise UnsupportedModel(f"config.json has two numbers of experts, {min(counts)} and {max(counts)}")
    return counts.pop()


class _Grouping(TypedDict):
    scale: float
    groups: int
    groups_per_row: int


_UNGROUPED: Final = _Grouping(scale=1.0, groups=1, groups_per_row=1)


def _grouping(routed: Routed, fields: Fields, count: int, per_row: int) -> _Grouping:
    """The groups that a row's experts come from, and the factor of their shares."""
    groups, chosen = 1, 1
    methods = ("noaux_tc",) if routed.lone_shares else ("greedy", "group_limited_greedy")
    method = fields.text("topk_method", methods[0])
    if method not in methods:
        raise UnsupportedModel(f"config.json has topk_method {method!r}")
    fields.expect("scoring_func", "sigmoid" if routed.lone_shares else "softmax")
    if method == "greedy":
        fields.ignore("n_group", "topk_group")
    else:
        groups = fields.count("n_group", 1, most=count)
        chosen = fields.count("topk_group", 1, most=groups)
    size = count // groups
    if count % groups or size * chosen < per_row or (groups > 1 and size < 2):
        raise UnsupportedModel(f"{per_row} of {count} experts in {chosen} of {groups} groups")
    scale = fields.number("routed_scaling_factor", 1.0)
    if scale <= 0:
        raise UnsupportedModel(f"config.json has routed_scaling_factor {scale}")
    return _Grouping(scale=scale, groups=groups, groups_per_row=chosen)


def _blocks(routed: Routed, fields: Fields, blocks: int) -> tuple[bool, ...]:
    if not routed.some:
        return (True,) * blocks
    if routed.some == "first":
        first = fields.any("first_k_dense_replace", 1)
        if type(first) is not int or not 0 <= first <= blocks:
            raise UnsupportedModel(f"config.json has first_k_dense_replace {str(first)[:80]}")
        return tuple(index >= first for index in range(blocks))
    if routed.some == "types":
        fields.expect("first_k_dense_replace", 1)
        kinds = fields.any("mlp_layer_types", ["dense"] + ["sparse"] * (blocks - 1))
        if not isinstance(kinds, list) or len(kinds) != blocks or not set(kinds) <= {"dense", "sparse"}:
            raise UnsupportedModel(f"config.json has mlp_layer_types {str(kinds)[:80]}")
        return tuple(kind == "sparse" for kind in kinds)
    every, others = fields.count("decoder_sparse_step", 1), fields.any("mlp_only_layers", [])
    if not isinstance(others, list) or not all(type(index) is int for index in others):
        raise UnsupportedModel(f"config.json has mlp_only_layers {str(others)[:80]}")
    return tuple(index not in others and (index + 1) % every == 0 for index in range(blocks))
