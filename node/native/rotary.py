"""How far each pair of numbers turns per position, by the scalings of config.json, the same on every machine."""

from __future__ import annotations

import math
from collections.abc import Mapping
from decimal import Context, Decimal
from typing import Any, Final

import numpy as np

from node.native.fields import Fields
from node.native.shape import RotaryTable
from protocol.errors import UnsupportedModel

# Far more than a double needs to be rounded correctly.
_EXACT: Final = Context(prec=50)


def rotary_table(parameters: Mapping[str, Any], head_dim: int, context: int) -> tuple[RotaryTable, int]:
    """The table of one entry "rope_parameters", and the numbers of a head that turn.

    Raises: UnsupportedModel, naming a scaling or a field that is not known here.
    """
    fields = Fields(parameters, "rope_parameters")
    kind = fields.text("rope_type", fields.text("type", "default"))
    base = fields.number("rope_theta")
    share = fields.number("partial_rotary_factor", 1.0)
    dims = int(head_dim * share)
    if not 0 < dims <= head_dim or dims % 2 or not base > 1:
        raise UnsupportedModel(f"a rotation of {dims} numbers of {head_dim} by {base}")
    plain = [float(_inverse_power(base, 2 * i, dims)) for i in range(dims // 2)]
    gain = 1.0
    match kind:
        case "default":
            scaled = plain
        case "linear":
            factor = fields.number("factor")
            scaled = [frequency / factor for frequency in plain]
        case "llama3":
            scaled = _llama3(plain, fields, context)
        case "yarn":
            scaled, gain = _yarn(plain, fields, base, dims, context)
        case "longrope":
            scaled, gain = _longrope(plain, fields, context)
        case "alpha":
            stretch = _EXACT.power(
                Decimal(fields.number("alpha")), _EXACT.divide(Decimal(dims), Decimal(dims - 2))
            )
            base = float(_EXACT.multiply(Decimal(base), stretch))
            scaled = [float(_inverse_power(base, 2 * i, dims)) for i in range(dims // 2)]
        case _:
            raise UnsupportedModel(f"rotations scaled by {kind!r}")
    fields.close()
    return RotaryTable(np.array(scaled, np.float32), gain), dims


def score_gain(parameters: Mapping[str, Any]) -> float:
    """What scores are multiplied by beside, in a family that leaves a part of a scaling's gain to them."""
    fields = Fields(parameters, "rope_parameters")
    share = fields.number("mscale_all_dim", 0.0)
    if fields.text("rope_type", fields.text("type", "default")) == "default" or not share:
        return 1.0
    return _stretched(fields.number("factor"), share) ** 2


def _stretched(factor: float, share: float) -> float:
    """The gain of a rotation that is stretched by `factor`."""
    return 0.1 * share * math.log(factor) + 1.0 if factor > 1 else 1.0


def _inverse_power(base: float, over: int, under: int) -> Decimal:
    exponent = _EXACT.divide(Decimal(-over), Decimal(under))
    return _EXACT.power(Decimal(base), exponent)


def _llama3(plain: list[float], fields: Fields, context: int) -> list[float]:
    """Long waves are stretched, short ones stay, those between pass from one to the other."""
    factor, low, high = (fields.number(name) for name in ("factor", "low_freq_factor", "high_freq_factor"))
    original = fields.number("original_max_position_embeddings", float(context))
    if not 0 < low < high:
        raise UnsupportedModel("rotations whose short waves are longer than their long ones")
    scaled = []
    for frequency in plain:
        turns = original * frequency / (2 * math.pi)
        if turns < low:
            scaled.append(frequency / factor)
        elif turns > high:
            scaled.append(frequency)
        else:
            smooth = (turns - low) / (high - low)
            scaled.append((1 - smooth) * frequency / factor + smooth * frequency)
    return scaled


def _longrope(plain: list[float], fields: Fields, context: int) -> tuple[list[float], float]:
    """For sequences within the original context: each pair is stretched by a factor of its own."""
    original = fields.number("original_max_position_embeddings")
    factor = fields.number("factor", context / original if original > 0 else 0.0)
    fields.any("long_factor")  # which longer sequences go by
    stretches = fields.any("short_factor")
    if not isinstance(stretches, list) or len(stretches) != len(plain) or original <= 1:
        raise UnsupportedModel(f"rope_parameters has short_factor {str(stretches)[:80]}")
    if not all(type(stretch) in (int, float) and 0 < stretch < 1e9 for stretch in stretches):
        raise UnsupportedModel(f"rope_parameters has short_factor {str(stretches)[:80]}")
    usual = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
    gain = fields.number("attention_factor", usual)
    return [frequency / stretch for frequency, stretch in zip(plain, stretches, strict=True)], gain


def _yarn(
    plain: list[float], fields: Fields, base: float, dims: int, context: int
) -> tuple[list[float], float]:
    """Waves that turn often in the original context stay, the others are stretched, by a ramp between two pairs."""
    factor = fields.number("factor")
    original = fields.number("original_max_position_embeddings", float(context))
    fast, slow = fields.number("beta_fast", 32.0), fields.number("beta_slow", 1.0)
    above, below = fields.number("mscale", 0.0), fields.number("mscale_all_dim", 0.0)
    both = above and below
    usual = _stretched(factor, above) / _stretched(factor, below) if both else _stretched(factor, 1.0)
    gain = fields.number("attention_factor", usual)

    def pair_that_turns(times: float) -> float:
        return dims * math.log(original / (times * 2 * math.pi)) / (2 * math.log(base))

    ends = pair_that_turns(fast), pair_that_turns(slow)
    if fields.flag("truncate", True):
        ends = math.floor(ends[0]), math.ceil(ends[1])
    first, last = max(ends[0], 0), min(ends[1], dims - 1)
    width = last - first if last != first else 0.001
    ramp = [min(max((i - first) / width, 0.0), 1.0) for i in range(len(plain))]
    scaled = [f / factor * share + f * (1 - share) for f, share in zip(plain, ramp, strict=True)]
    return scaled, gain
