"""Weights in eight-bit floats, with a scale for each block of them, for each row, or for all."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from node.formats.form import Form, Scaled, Stack
from node.formats.raw import EIGHT_BIT_FLOATS, Raw
from node.formats.scales import grid_of, matrix_shape, scales_of
from node.formats.scheme import is_linear, names
from node.native.fields import Fields
from protocol.errors import BadCheckpoint, UnsupportedModel

# Of the inputs and outputs of layers, and of keys and values in a cache of eight bits.
DROPPED: Final = tuple(
    f".{name}"
    for name in (
        *("input_scale", "activation_scale", "output_scale", "weight_input_scale", "input_zero_point"),
        *("k_scale", "v_scale", "q_scale", "kv_scale", "prob_scale", "input_global_scale"),
    )
)
_HARMLESS: Final = ("activation_scale_ub", "activation_scheme", "dequantize", "kv_cache_scheme", "scale_fmt")


@dataclass(frozen=True)
class Fp8Scheme:
    """See `Scheme`.

    block    rows and columns that share a scale, None where none do by blocks
    spared   what the paths of modules hold that are not quantised
    """

    block: tuple[int, int] | None
    spared: tuple[str, ...] = ()
    title: str = "fp8"
    dropped: tuple[str, ...] = DROPPED
    needed: frozenset[str] = frozenset({"weight", "scale"})
    parts: Mapping[str, tuple[str, str]] = field(
        default_factory=lambda: {"_scale_inv": ("", "scale"), ".weight_scale": (".weight", "scale")}
    )

    def form(self, name: str, parts: Mapping[str, Raw]) -> Form:
        """See `Scheme`."""
        weight, scale = parts["weight"].require(EIGHT_BIT_FLOATS), parts["scale"].as_powers()
        if len(weight.shape) != 3:
            return eight_bit_floats(weight, scale, self.block)
        count, outs, ins = weight.shape
        if not all(weight.shape) or not scale.shape or scale.shape[0] != count:
            raise BadCheckpoint(
                f"{scale.name} has the shape {list(scale.shape)}, not one for each of {count}"
            )
        eight_bit_floats(weight.at(0), scale.at(0), self.block)
        return Stack((count, outs, ins), lambda at: eight_bit_floats(weight.at(at), scale.at(at), self.block))

    def converts(self, weight: str) -> bool:
        """See `Scheme`."""
        return is_linear(weight) and not any(name in weight for name in self.spared)

    def kept(self, weight: str) -> str:
        """See `Scheme`."""
        return ""

    def weight_bytes(self, weight: str, outs: int, ins: int) -> int:
        """See `Scheme`."""
        return outs * ins + 4 * math.prod(grid_of((outs, ins), self.block or (outs, ins)))


def eight_bit_floats(weight: Raw, scale: Raw, block: tuple[int, int] | None) -> Scaled:
    """A matrix with one scale, one for each row, or one for each block. Raises: BadCheckpoint."""
    weight.require(EIGHT_BIT_FLOATS)
    shape = matrix_shape(weight)
    size, scales = scales_of(shape, scale, block)
    return Scaled(shape, size, weight.floats, scales)


def read_fp8(fields: Fields) -> Fp8Scheme:
    """From a quantization_config. Raises: UnsupportedModel."""
    fields.ignore(*_HARMLESS)
    fields.expect("fmt", "e4m3", "e5m2", "float8_e4m3fn")
    fields.expect("expert_dtype", "fp8")
    fields.expect("modules_to_convert")
    spared = tuple(
        name for key in ("modules_to_not_convert", "ignored_layers", "ignore") for name in names(fields, key)
    )
    return Fp8Scheme(block_of(fields.any("weight_block_size", None)), spared)


def block_of(given: Any) -> tuple[int, int] | None:
    """Rows and columns, as configurations have them. Raises: UnsupportedModel."""
    match given:
        case None:
            return None
        case [int(rows), int(columns)] if 1 <= rows <= 1 << 20 and 1 <= columns <= 1 << 20:
            return rows, columns
    raise UnsupportedModel(f"quantization_config has blocks of {str(given)[:80]}")
