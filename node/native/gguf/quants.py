"""The types of tensors in GGUF files: how many bytes stand for how many numbers, and for which.

Layouts: ggml-common.h; one block after another, each with scales of its own. Operations come in ggml's order, so that
every float comes out as it does there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

Blocks = NDArray[np.uint8]
Floats = NDArray[np.float32]
# Codes from 0 to 15 [n, groups, 32], and of each group the step and the least: a number is code * step + least.
Fours = tuple[Blocks, Floats, Floats]

_SUPER: Final = 256
# Of IQ4 and of MXFP4 (in halves) what the codes 0 to 15 stand for.
_NONLINEAR: Final = np.array(
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float32
)
_FLOATS4: Final = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], np.float32)


@dataclass(frozen=True, slots=True)
class Type:
    """A type by its number in files; a block of `size` bytes holds so many values."""

    number: int
    values: int
    size: int
    widen: Callable[[Blocks], Floats]  # [n, size] -> [n, values]


def widen(kind: str, rows: NDArray[np.uint8]) -> Floats:
    """The numbers [..., columns] that rows of bytes [..., row bytes] of this type stand for."""
    type_ = TYPES[kind]
    blocks = np.ascontiguousarray(rows).reshape(-1, type_.size)
    with np.errstate(over="ignore", invalid="ignore"):  # whoever packs them refuses what is not finite
        values = type_.widen(blocks)
    return values.reshape(*rows.shape[:-1], -1)


def fours(kind: str, rows: NDArray[np.uint8]) -> Fours:
    """Rows of bytes [n, row bytes] of one of FOURS as they are, without a float in between."""
    blocks = np.ascontiguousarray(rows).reshape(-1, TYPES[kind].size)
    with np.errstate(over="ignore", invalid="ignore"):
        codes, steps, minima = FOURS[kind](blocks)
    groups = len(rows), -1
    return codes.reshape(*groups, 32), steps.reshape(groups), minima.reshape(groups)


def _half(blocks: Blocks, at: int) -> Floats:
    """The 16-bit float at a place of each block, [n, 1]."""
    return np.ascontiguousarray(blocks[:, at : at + 2]).view("<f2").astype(np.float32)


def _plain(dtype: str) -> Callable[[Blocks], Floats]:
    def widen_plain(blocks: Blocks) -> Floats:
        return blocks.view(dtype).astype(np.float32)

    return widen_plain


def _bf16(blocks: Blocks) -> Floats:
    return (blocks.view("<u2").astype(np.uint32) << 16).view(np.float32)


def _nibbles(codes: Blocks) -> Blocks:
    """The low halves of all bytes of a block, then the high ones."""
    return np.concatenate((codes & 15, codes >> 4), axis=1)


def _fifth(blocks: Blocks, at: int) -> Blocks:
    """A fifth bit for each of 32 codes."""
    bits = np.unpackbits(blocks[:, at : at + 4], axis=1, bitorder="little")
    return np.left_shift(bits, 4, dtype=np.uint8)


def _q4_0(blocks: Blocks) -> Floats:
    return _half(blocks, 0) * (_nibbles(blocks[:, 2:]).astype(np.float32) - 8)


def _q4_1(blocks: Blocks) -> Floats:
    return _half(blocks, 0) * _nibbles(blocks[:, 4:]).astype(np.float32) + _half(blocks, 2)


def _q5_0(blocks: Blocks) -> Floats:
    codes = _nibbles(blocks[:, 6:]) | _fifth(blocks, 2)
    return _half(blocks, 0) * (codes.astype(np.float32) - 16)


def _q5_1(blocks: Blocks) -> Floats:
    codes = _nibbles(blocks[:, 8:]) | _fifth(blocks, 4)
    return _half(blocks, 0) * codes.astype(np.float32) + _half(blocks, 2)


def _q8_0(blocks: Blocks) -> Floats:
    return _half(blocks, 0) * blocks[:, 2:].view(np.int8).astype(np.float32)


def _iq4_nl(blocks: Blocks) -> Floats:
    return _half(blocks, 0) * _NONLINEAR[_nibbles(blocks[:, 2:])]


def _mxfp4(blocks: Blocks) -> Floats:
    powers = np.ldexp(np.float32(1), blocks[:, :1].astype(np.int32) - 128)
    return powers.astype(np.float32) * _FLOATS4[_nibbles(blocks[:, 1:])]


def _pairs(codes: Blocks, bits: int) -> Blocks:
    """Codes of so many bits from each run of 32 bytes: all lowest ones first, then the next. [n, 256]"""
    runs = codes.reshape(len(codes), -1, 1, 32)
    shifts = np.arange(0, 8, bits, dtype=np.uint8)[:, None]
    found = (runs >> shifts) & np.uint8((1 << bits) - 1)
    return found.reshape(len(codes), -1)


def _scaled(scales: NDArray[Any], codes: NDArray[Any]) -> Floats:
    """Codes [n, 256] times scales [n, groups]."""
    groups = codes.reshape(len(codes), scales.shape[1], -1).astype(np.float32)
    scaled: Floats = scales[..., None] * groups
    return scaled


def _less(values: Floats, minima: Floats) -> Floats:
    return (values - minima[..., None]).reshape(len(values), _SUPER)


def _q2_k(blocks: Blocks) -> Floats:
    scales, codes = blocks[:, :16], blocks[:, 16:80]
    steps = _half(blocks, 80) * (scales & 15).astype(np.float32)
    minima = _half(blocks, 82) * (scales >> 4).astype(np.float32)
    return _less(_scaled(steps, _pairs(codes, 2)), minima)


def _q3_k(blocks: Blocks) -> Floats:
    high, codes, packed = blocks[:, :32], blocks[:, 32:96], blocks[:, 96:108]
    low = _nibbles(packed[:, :8])
    tops = np.concatenate([(packed[:, 8:] >> shift) & 3 for shift in (0, 2, 4, 6)], axis=1)
    scales = (low | tops << 4).astype(np.int8) - 32
    # The third bit is kept the other way round: where it is missing, four are taken away.
    third = (_pairs(high, 1) ^ 1).astype(np.int8) << 2
    steps = _half(blocks, 108) * scales.astype(np.float32)
    return _scaled(steps, _pairs(codes, 2).astype(np.int8) - third).reshape(len(blocks), _SUPER)


def _six_bits(packed: Blocks) -> tuple[Floats, Floats]:
    """Eight scales and eight minima of six bits from twelve bytes."""
    first, second, mixed = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    scales = np.concatenate((first & 63, mixed & 15 | first >> 6 << 4), axis=1)
    minima = np.concatenate((second & 63, mixed >> 4 | second >> 6 << 4), axis=1)
    return scales.astype(np.float32), minima.astype(np.float32)


def _q4_k(blocks: Blocks) -> Floats:
    scales, minima = _six_bits(blocks[:, 4:16])
    steps, least = _half(blocks, 0) * scales, _half(blocks, 2) * minima
    return _less(_scaled(steps, _pairs(blocks[:, 16:], 4)), least)


def _fours_q4_0(blocks: Blocks) -> Fours:
    steps = _half(blocks, 0)
    return _nibbles(blocks[:, 2:]), steps, -8 * steps


def _fours_q4_1(blocks: Blocks) -> Fours:
    return _nibbles(blocks[:, 4:]), _half(blocks, 0), _half(blocks, 2)


def _fours_q4_k(blocks: Blocks) -> Fours:
    scales, minima = _six_bits(blocks[:, 4:16])
    return _pairs(blocks[:, 16:], 4), _half(blocks, 0) * scales, -_half(blocks, 2) * minima


def _q5_k(blocks: Blocks) -> Floats:
    scales, minima = _six_bits(blocks[:, 4:16])
    steps, least = _half(blocks, 0) * scales, _half(blocks, 2) * minima
    codes = _pairs(blocks[:, 48:], 4) | _pairs(blocks[:, 16:48], 1) << 4
    return _less(_scaled(steps, codes), least)


def _q6_k(blocks: Blocks) -> Floats:
    # In each half of a block 64 bytes have the low bits, and 32 the high ones.
    low = np.concatenate([_nibbles(blocks[:, at : at + 64]) for at in (0, 64)], axis=1)
    codes = (low | _pairs(blocks[:, 128:192], 2) << 4).astype(np.int8) - 32
    steps = _half(blocks, 208) * blocks[:, 192:208].view(np.int8).astype(np.float32)
    return _scaled(steps, codes).reshape(len(blocks), _SUPER)


def _iq4_xs(blocks: Blocks) -> Floats:
    high = np.ascontiguousarray(blocks[:, 2:4]).view("<u2") >> np.arange(0, 16, 2, dtype=np.uint16)
    low = np.stack((blocks[:, 4:8] & 15, blocks[:, 4:8] >> 4), axis=2).reshape(-1, 8)
    scales = (low | (high & 3).astype(np.uint8) << 4).astype(np.int8) - 32
    codes = _nibbles(blocks[:, 8:].reshape(-1, 16))
    steps = _half(blocks, 0) * scales.astype(np.float32)
    return _scaled(steps, _NONLINEAR[codes].reshape(-1, _SUPER)).reshape(len(blocks), _SUPER)


TYPES: Final[Mapping[str, Type]] = {
    "F32": Type(0, 1, 4, _plain("<f4")),
    "F16": Type(1, 1, 2, _plain("<f2")),
    "Q4_0": Type(2, 32, 18, _q4_0),
    "Q4_1": Type(3, 32, 20, _q4_1),
    "Q5_0": Type(6, 32, 22, _q5_0),
    "Q5_1": Type(7, 32, 24, _q5_1),
    "Q8_0": Type(8, 32, 34, _q8_0),
    "Q2_K": Type(10, _SUPER, 84, _q2_k),
    "Q3_K": Type(11, _SUPER, 110, _q3_k),
    "Q4_K": Type(12, _SUPER, 144, _q4_k),
    "Q5_K": Type(13, _SUPER, 176, _q5_k),
    "Q6_K": Type(14, _SUPER, 210, _q6_k),
    "IQ4_NL": Type(20, 32, 18, _iq4_nl),
    "IQ4_XS": Type(23, _SUPER, 136, _iq4_xs),
    "BF16": Type(30, 1, 2, _bf16),
    "MXFP4": Type(39, 32, 17, _mxfp4),
}
# The types that are what our own four bits are.
FOURS: Final[Mapping[str, Callable[[Blocks], Fours]]] = {
    "Q4_0": _fours_q4_0,
    "Q4_1": _fours_q4_1,
    "Q4_K": _fours_q4_k,
}
