"""Which block turns by which table, as config.json says it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from node.native.families import FULL, SLIDING, Family
from node.native.fields import Fields
from node.native.rotary import rotary_table, score_gain
from node.native.shape import Shape
from protocol.errors import UnsupportedModel

Parameters = Mapping[str, Any]
# One way to scale, by all the names that Phi's configurations have for it.
_LONG: Final = ("longrope", "su", "yarn")


@dataclass(frozen=True, slots=True)
class Blocks:
    """What is known of a model's blocks before their rotation: kinds says of each whether it has a window.

    head_dim    the numbers of a head of which some or all turn
    """

    model_type: str
    family: Family
    kinds: tuple[str, ...]
    context: int
    head_dim: int


def add_rotation(shape: Shape, blocks: Blocks, fields: Fields) -> Shape:
    """The shape with its tables. Raises: UnsupportedModel."""
    theta = fields.number("rope_theta", blocks.family.theta)
    scaling, parameters = fields.any("rope_scaling", None), fields.any("rope_parameters", None)
    if not all(isinstance(given, dict) for given in (scaling, parameters) if given is not None):
        raise UnsupportedModel("config.json has rope_parameters of another form")
    if blocks.family.local_theta is not None:
        by_kind = _by_kind(blocks.family.local_theta, fields, theta, scaling, parameters)
        tables, dims = zip(
            *(rotary_table(by_kind[kind], blocks.head_dim, blocks.context) for kind in (FULL, SLIDING)),
            strict=True,
        )
        rotary_of = tuple(0 if seen == FULL else 1 for seen in blocks.kinds)
        return replace(shape, rotary_dims=dims[0], rotary_tables=tables, rotary_of=rotary_of)
    given = _one_for_all(blocks, fields, {"rope_theta": theta, **(scaling or parameters or {})})
    table, turning = rotary_table(given, blocks.head_dim, blocks.context)
    if shape.latent is not None:
        shape = replace(shape, query_scale=shape.query_scale * score_gain(given))
    shape = replace(shape, rotary_tables=(table,), rotary_of=_turning(blocks, fields))
    # Such a model takes other factors as soon as the whole sequence is long, for what it has computed before as well:
    # another answer to the same tokens, and nothing that is kept could be used again. The kernels stay below that.
    long = given.get("rope_type", given.get("type")) == _LONG[0]
    reach: int = given["original_max_position_embeddings"] if long else 0
    return replace(shape, rotary_dims=turning, reach=reach)


def _one_for_all(blocks: Blocks, fields: Fields, given: Parameters) -> Parameters:
    kind = given.get("rope_type", given.get("type", "default"))
    if blocks.family.rotated is not None:
        share = fields.any("partial_rotary_factor", blocks.family.rotated)
        given = {"partial_rotary_factor": share, **given}
    elif given.get("partial_rotary_factor", 1.0) != 1.0:
        raise UnsupportedModel(f"config.json has a partial rotation, which {blocks.model_type} has not")
    if blocks.model_type == "phi3":
        original = fields.count("original_max_position_embeddings", 4096, most=1 << 40)
        if kind in _LONG:
            given = {**given, "original_max_position_embeddings": original, "rope_type": _LONG[0]}
    if blocks.model_type == "hunyuan_v1_dense" and kind == "dynamic" and given.get("alpha"):
        # Called dynamic, and fixed: only the base is another.
        given = {"rope_type": "alpha", "rope_theta": given["rope_theta"], "alpha": given["alpha"]}
    return given


def _by_kind(
    local: tuple[str, float],
    fields: Fields,
    theta: float,
    scaling: Parameters | None,
    parameters: Parameters | None,
) -> Mapping[str, Parameters]:
    """Blocks that see everything turn by one table, those with a window by another."""
    bases = {FULL: theta, SLIDING: fields.number(*local)}
    given = parameters or {FULL: scaling or {}, SLIDING: {}}
    if given.keys() - {FULL, SLIDING} or (parameters and scaling):
        raise UnsupportedModel("config.json has rope_parameters of another form")
    found = {}
    for kind, base in bases.items():
        own = given.get(kind) or {}
        if not isinstance(own, dict):
            raise UnsupportedModel("config.json has rope_parameters of another form")
        found[kind] = {"rope_theta": base, **own}
    return found


def _turning(blocks: Blocks, fields: Fields) -> tuple[int, ...]:
    """Of each block table 0, or -1 where nothing turns."""
    kinds, count = blocks.kinds, len(blocks.kinds)
    local_only = blocks.model_type == "exaone4" and fields.any("sliding_window", None) is not None
    if blocks.model_type == "cohere2" or local_only:
        return tuple(0 if seen == SLIDING else -1 for seen in kinds)
    turning = [1] * count
    if blocks.model_type == "smollm3":
        fields.expect("use_sliding_window", False)
        every = fields.count("no_rope_layer_interval", 4)
        turning = fields.any("no_rope_layers", [int((index + 1) % every != 0) for index in range(count)])
        if not isinstance(turning, list) or len(turning) < count or not set(turning) <= {0, 1}:
            raise UnsupportedModel(f"config.json has no_rope_layers {str(turning)[:80]}")
    return tuple(0 if turns else -1 for turns in turning[:count])
