"""bitsandbytes: four-bit codes in blocks along a flat matrix, or whole numbers with a scale for each row."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final

import numpy as np
from numpy.typing import NDArray

from node.formats.form import Form, Integers
from node.formats.raw import Floats, Raw, Which
from node.formats.scales import matrix_shape
from node.formats.scheme import is_linear, names
from node.native.fields import Fields
from protocol.errors import BadCheckpoint, UnsupportedModel

_KINDS: Final = ("nf4", "fp4")
_STATE_BYTES: Final = 4096
_SIDE: Final = 1 << 24
# What is usual, and about the bytes of a table of 16 codes with its state, and of one of 256.
_BLOCK, _TABLE, _NESTED_TABLE = 64, 200, 1100
_HARMLESS: Final = (
    *(
        "_load_in_4bit",
        "_load_in_8bit",
        "bnb_4bit_compute_dtype",
        "bnb_4bit_quant_storage",
        "bnb_4bit_quant_type",
    ),
    *("llm_int8_enable_fp32_cpu_offload", "llm_int8_has_fp16_weight", "llm_int8_threshold"),
)


@dataclass(frozen=True)
class BitsAndBytes4Scheme:
    """See `Scheme`. `nested`: scales are in eight bits themselves."""

    nested: bool
    spared: tuple[str, ...]
    dropped: tuple[str, ...] = ()
    needed: frozenset[str] = frozenset({"weight", "absmax", "quant_map", "state"})
    parts: Mapping[str, tuple[str, str]] = field(
        default_factory=lambda: {
            **{
                f".{part}": ("", part)
                for part in ("absmax", "quant_map", "nested_absmax", "nested_quant_map")
            },
            **{f".quant_state.bitsandbytes__{kind}": ("", "state") for kind in _KINDS},
        }
    )

    @property
    def title(self) -> str:
        """See `Scheme`."""
        return "bitsandbytes, 4 bits"

    def form(self, name: str, parts: Mapping[str, Raw]) -> Form:
        """See `Scheme`."""
        state = _State.read(parts["state"])
        codes = parts["weight"].bytes()
        count = math.prod(state.shape)
        if len(codes) != count // 2:
            raise BadCheckpoint(
                f"{name} has {len(codes)} bytes, where {list(state.shape)} takes {count // 2}"
            )
        parts["quant_map"].require(("F32",), (16,))
        blocks = -(-count // state.block)
        scales = parts["absmax"]
        if not state.nested_block:
            scales.require(("F32",), (blocks,))
        else:
            scales.require(("U8",), (blocks,))
            if missing := {"nested_absmax", "nested_quant_map"} - parts.keys():
                raise BadCheckpoint(f"{name} has no {min(missing)}")
            parts["nested_absmax"].require(("F32",), (-(-blocks // state.nested_block),))
            parts["nested_quant_map"].require(("F32",), (256,))
        return _Blocks(state, codes.reshape(state.shape[0], -1), parts)

    def converts(self, weight: str) -> bool:
        """See `Scheme`."""
        return is_linear(weight) and not any(name in weight for name in self.spared)

    def kept(self, weight: str) -> str:
        """See `Scheme`."""
        return ""

    def weight_bytes(self, weight: str, outs: int, ins: int) -> int:
        """See `Scheme`."""
        blocks = outs * ins // _BLOCK
        scales = blocks + blocks // 64 + _NESTED_TABLE if self.nested else 4 * blocks
        return outs * ins // 2 + scales + _TABLE


@dataclass(frozen=True)
class _State:
    """What is stored beside the tensors: blocks are of so many numbers, nested ones (0: none) of so many scales."""

    shape: tuple[int, int]
    block: int
    nested_block: int
    nested_offset: float

    @classmethod
    def read(cls, raw: Raw) -> _State:
        """Raises: BadCheckpoint, naming the tensor."""
        raw.require(("U8",))
        try:
            if raw.array.size > _STATE_BYTES:
                raise ValueError("it is too long")
            given = json.loads(raw.array.tobytes())
            outs, ins = given["shape"]
            block, nested = given["blocksize"], given.get("nested_blocksize") or 0
            offset = float(given.get("nested_offset") or 0)
            whole = all(type(n) is int for n in (outs, ins, block, nested))
            if not whole or not 1 <= outs <= _SIDE or not 2 <= ins <= _SIDE or ins % 2:
                raise ValueError(f"it has the shape {str(given['shape'])[:80]}")
            if not 1 <= block <= _SIDE or not 0 <= nested <= _SIDE or not math.isfinite(offset):
                raise ValueError(f"it has blocks of {str(block)[:40]} and {str(nested)[:40]}")
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError) as error:
            raise BadCheckpoint(f"{raw.name} is no state of bitsandbytes: {error}") from error
        return cls((outs, ins), block, nested, offset)


class _Blocks(Form):
    """A matrix whose numbers, row after row, are in blocks of codes with a scale, and a table of what codes mean."""

    def __init__(self, state: _State, codes: NDArray[np.uint8], parts: Mapping[str, Raw]) -> None:
        self.shape = state.shape
        self._state = state
        self._codes = codes
        self._parts = parts

    def rows(self, which: Which) -> Floats:
        """See `Form`."""
        outs, ins = self._state.shape
        chosen = np.arange(outs)[which]
        values: Floats = self._pairs[self._codes[which]].reshape(len(chosen), ins)
        block = self._state.block
        with np.errstate(over="ignore", invalid="ignore"):  # whoever packs them refuses what is not finite
            if ins % block == 0:
                blocks = chosen[:, None] * (ins // block) + np.arange(ins // block)
                scales = self._scales(blocks)
                values *= np.repeat(scales, block, axis=1)
            else:
                values *= self._scales((chosen[:, None] * ins + np.arange(ins)) // block)
        return values

    @cached_property
    def _pairs(self) -> Floats:
        """Of a byte what its high four bits mean, then its low."""
        table, codes = self._parts["quant_map"].floats(), np.arange(256)
        return np.stack((table[codes >> 4], table[codes & 15]), axis=1)

    def _scales(self, blocks: NDArray[np.intp]) -> Floats:
        state, scales = self._state, self._parts["absmax"]
        if not state.nested_block:
            return scales.floats(blocks)
        values = np.take(self._parts["nested_quant_map"].floats(), scales.array[blocks])
        values *= self._parts["nested_absmax"].floats(blocks // state.nested_block)
        values += np.float32(state.nested_offset)
        return values


@dataclass(frozen=True)
class BitsAndBytes8Scheme:
    """See `Scheme`."""

    spared: tuple[str, ...]
    title: str = "bitsandbytes, 8 bits"
    dropped: tuple[str, ...] = ()
    needed: frozenset[str] = frozenset({"weight", "scales"})
    parts: Mapping[str, tuple[str, str]] = field(
        default_factory=lambda: {".SCB": (".weight", "scales"), ".weight_format": (".weight", "layout")}
    )

    def form(self, name: str, parts: Mapping[str, Raw]) -> Form:
        """See `Scheme`."""
        weight = parts["weight"].require(("I8",))
        outs, ins = matrix_shape(weight)
        scales, layout = parts["scales"].require(("F32",), (outs,)), parts.get("layout")
        if layout is not None and layout.bytes().any():
            raise BadCheckpoint(f"{layout.name}: a layout of other than rows is not read")
        return Integers(
            (outs, ins),
            8,
            codes=lambda which: weight.array[which],
            scales=lambda which: (scales.floats(which) / np.float32(127))[:, None],
            zeros=0,
            lowest=-128,
        )

    def converts(self, weight: str) -> bool:
        """See `Scheme`."""
        return is_linear(weight) and not any(name in weight for name in self.spared)

    def kept(self, weight: str) -> str:
        """See `Scheme`."""
        return ""

    def weight_bytes(self, weight: str, outs: int, ins: int) -> int:
        """See `Scheme`."""
        return outs * ins + 4 * outs


def read_bitsandbytes(fields: Fields) -> BitsAndBytes4Scheme | BitsAndBytes8Scheme:
    """From a quantization_config. Raises: UnsupportedModel."""
    fields.ignore(*_HARMLESS)
    spared = names(fields, "llm_int8_skip_modules")
    four, eight = (
        bool(fields.any(f"load_in_{bits}bit", fields.any(f"_load_in_{bits}bit", False))) for bits in (4, 8)
    )
    nested = bool(fields.any("bnb_4bit_use_double_quant", False))
    if four == eight:
        raise UnsupportedModel("quantization_config says neither load_in_4bit nor load_in_8bit, or both")
    return BitsAndBytes4Scheme(nested, spared) if four else BitsAndBytes8Scheme(spared)
