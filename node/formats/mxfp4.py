"""Weights in four-bit floats, 32 of which share a power of two: as gpt-oss is published."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from node.formats.form import GROUP, Form, Scaled, Stack, Turned
from node.formats.raw import Floats, Raw
from node.formats.scheme import names
from node.native.fields import Fields
from protocol.errors import BadCheckpoint

# What holds every one of them exactly.
_KEPT: Final = "BF16"
_HALF: Final = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_VALUES: Final = np.array([*_HALF, *(-value for value in _HALF)], np.float32)
# Of a byte its low four bits, then its high.
_PAIRS: Final = np.stack((_VALUES[np.arange(256) & 15], _VALUES[np.arange(256) >> 4]), axis=1)


@dataclass(frozen=True)
class Mxfp4Scheme:
    """See `Scheme`. The experts of a block lie in one tensor, each with its rows in groups of 32."""

    title: str = "mxfp4"
    dropped: tuple[str, ...] = ()
    needed: frozenset[str] = frozenset({"blocks", "scales"})
    parts: Mapping[str, tuple[str, str]] = field(
        default_factory=lambda: {"_blocks": ("", "blocks"), "_scales": ("", "scales")}
    )

    def form(self, name: str, parts: Mapping[str, Raw]) -> Form:
        """See `Scheme`. The plain checkpoint has the columns of experts as rows."""
        blocks, powers = parts["blocks"].require(("U8",)), parts["scales"].require(("U8",)).as_powers()
        if len(powers.shape) != 3 or not all(powers.shape):
            raise BadCheckpoint(
                f"{powers.name} has the shape {list(powers.shape)}, not one matrix for each expert"
            )
        count, outs, groups = powers.shape
        blocks.require(("U8",), (count, outs, groups, GROUP // 2))

        def matrix(index: int) -> Form:
            codes, exponents = blocks.array[index].reshape(outs, -1), powers.at(index)
            shape = outs, groups * GROUP
            return Turned(
                Scaled(
                    shape,
                    (1, GROUP),
                    lambda which: four_bit_floats(codes[which]),
                    exponents.floats,
                    _KEPT,
                )
            )

        return Stack((count, groups * GROUP, outs), matrix, _KEPT)

    def converts(self, weight: str) -> bool:
        """See `Scheme`."""
        return weight.removesuffix(".weight").endswith((".experts.gate_up_proj", ".experts.down_proj"))

    def kept(self, weight: str) -> str:
        """See `Scheme`."""
        return _KEPT

    def weight_bytes(self, weight: str, outs: int, ins: int) -> int:
        """See `Scheme`."""
        return outs * ins // GROUP * (GROUP // 2 + 1)


def read_mxfp4(fields: Fields) -> Mxfp4Scheme:
    """From a quantization_config. Raises: UnsupportedModel."""
    names(fields, "modules_to_not_convert")
    fields.ignore("dequantize")
    return Mxfp4Scheme()


def four_bit_floats(codes: NDArray[np.uint8]) -> Floats:
    """What bytes [rows, n] mean: [rows, 2 n]."""
    return _PAIRS[codes].reshape(len(codes), -1)
