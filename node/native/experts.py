"""Which blocks have experts and how many, as config.json says it."""

from __future__ import annotations

from typing import Final

from node.native.families import Flag, Routed
from node.native.fields import Fields
from node.native.packed import GROUP
from node.native.shape import Experts
from protocol.errors import UnsupportedModel

# `model.h` has the same number.
MOST_EXPERTS: Final = 512
# Training alone knows them.
_HARMLESS: Final = ("output_router_logits", "router_aux_loss_coef", "router_jitter_noise")


def read_experts(routed: Routed, fields: Fields, blocks: int) -> Experts:
    """The experts of a family that has them. Raises: UnsupportedModel."""
    fields.ignore(*_HARMLESS)
    count = _count(fields)
    per_row = fields.count("num_experts_per_tok", most=count)
    intermediate = fields.count(routed.intermediate)
    shared = 0
    if routed.shared is not None and fields.any(routed.shared_intermediate) != 0:
        shared = fields.count(routed.shared_intermediate)
    if intermediate % GROUP or shared % GROUP:
        raise UnsupportedModel(f"experts of {intermediate} and {shared} numbers are no multiples of {GROUP}")
    whole = routed.whole_shares
    return Experts(
        count=count,
        per_row=per_row,
        intermediate=intermediate,
        whole_shares=fields.flag(whole.name, whole.absent) if isinstance(whole, Flag) else whole,
        blocks=_blocks(fields, blocks) if routed.some else (True,) * blocks,
        shared=shared,
    )


def _count(fields: Fields) -> int:
    """By either of its names."""
    given = [name for name in ("num_local_experts", "num_experts") if fields.any(name, None) is not None]
    counts = {fields.count(name, most=MOST_EXPERTS) for name in given or ["num_experts"]}
    if len(counts) > 1:
        raise UnsupportedModel(f"config.json has two numbers of experts, {min(counts)} and {max(counts)}")
    return counts.pop()


def _blocks(fields: Fields, blocks: int) -> tuple[bool, ...]:
    every, others = fields.count("decoder_sparse_step", 1), fields.any("mlp_only_layers", [])
    if not isinstance(others, list) or not all(type(index) is int for index in others):
        raise UnsupportedModel(f"config.json has mlp_only_layers {str(others)[:80]}")
    return tuple(index not in others and (index + 1) % every == 0 for index in range(blocks))
