"""compressed-tensors: whole numbers, packed or not, and floats of eight or four bits; layers may differ."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from node.formats.form import GROUP, IN_FOURS, Columns, Form, Integers, Reader, Scaled
from node.formats.fp8 import DROPPED, block_of, eight_bit_floats
from node.formats.mxfp4 import four_bit_floats
from node.formats.raw import EIGHT_BIT_FLOATS, FLOATS, Floats, Raw, Which, unpack
from node.formats.scales import Block, columns_of, grid_of, matrix_shape, scales_of
from node.formats.scheme import UNKNOWN, is_linear, names
from node.native.fields import Fields
from protocol.errors import BadCheckpoint, UnsupportedModel

_WORD: Final = 32
_FORMATS: Final = (
    *("dense", "int-quantized", "float-quantized", "naive-quantized", "pack-quantized", "mixed-precision"),
    *("nvfp4-pack-quantized", "mxfp4-pack-quantized"),
)
_PARTS: Final = {
    f".weight_{name}": (".weight", part)
    for name, part in {
        "packed": "packed",
        "scale": "scale",
        "zero_point": "zeros",
        "shape": "shape",
        "g_idx": "order",
        "global_scale": "global",
    }.items()
}


@dataclass(frozen=True)
class Layers:
    """Layers that are quantised alike: `group` columns, 0 for all, or a `block` share a scale."""

    targets: tuple[str, ...]
    bits: int
    floats: bool
    symmetric: bool
    group: int
    block: Block | None
    packed: bool


@dataclass(frozen=True)
class CompressedScheme:
    """See `Scheme`. Inputs of layers are not rounded here, whatever `input_activations` says."""

    layers: tuple[Layers, ...]
    ignored: tuple[str, ...]
    dropped: tuple[str, ...] = DROPPED
    needed: frozenset[str] = frozenset({"scale"})
    parts: Mapping[str, tuple[str, str]] = field(default_factory=lambda: _PARTS)

    @property
    def title(self) -> str:
        """See `Scheme`."""
        found = {f"{'fp' if one.floats else 'int'}{one.bits}": None for one in self.layers}
        return f"compressed-tensors, {' and '.join(found)}"

    def form(self, name: str, parts: Mapping[str, Raw]) -> Form:
        """See `Scheme`."""
        if (packed := parts.get("packed")) is not None:
            return (
                _four_bit_floats(packed, parts) if packed.dtype == "U8" else self._packed(name, packed, parts)
            )
        if (weight := parts.get("weight")) is None:
            raise BadCheckpoint(f"{name} is missing, which {parts['scale'].name} is of")
        weight.require(("I8", *EIGHT_BIT_FLOATS))
        shape, zeros = matrix_shape(weight), parts.get("zeros")
        if weight.dtype == "I8":
            return self._integers(shape, 8, lambda which: weight.array[which], parts, lowest=-128)
        if zeros is not None and zeros.bytes().any():
            raise BadCheckpoint(f"{zeros.name}: floats have no zeros to be taken away")
        return eight_bit_floats(weight, parts["scale"], self._block(name))

    def _packed(self, name: str, packed: Raw, parts: Mapping[str, Raw]) -> Form:
        packed.require(("I32", "U32"))
        if "shape" not in parts:
            raise BadCheckpoint(f"{name} has no weight_shape")
        given = parts["shape"].require(("I64", "I32"), (2,)).array
        outs, ins = int(given[0]), int(given[1])
        known = {one.bits for one in self.layers if not one.floats}
        bits = next((bits for bits in known if packed.shape == (outs, -(-ins * bits // _WORD))), 0)
        if not bits or outs < 1 or ins < 1:
            said = f"of {outs} x {ins} weights in {' or '.join(map(str, known))} bits"
            raise BadCheckpoint(f"{packed.name} has the shape {list(packed.shape)}, which is not that {said}")
        return self._integers(
            (outs, ins), bits, lambda which: unpack(packed.array[which], bits)[:, :ins], parts, lowest=0
        )

    def _integers(
        self, shape: Block, bits: int, codes: Reader, parts: Mapping[str, Raw], *, lowest: int
    ) -> Form:
        outs, ins = shape
        scale, zeros, order = parts["scale"].require(FLOATS), parts.get("zeros"), parts.get("order")
        block = self._block(scale.name)
        (down, across), by_rows = scales_of(shape, scale, block)
        middle = (1 << bits - 1) + lowest

        def columns() -> Columns:
            if (
                order is not None
                and (found := columns_of(order.require(("I32", "I64"), (ins,)), ins // across)) is not None
            ):
                return found
            return np.arange(ins) // across if ins % across else None

        def spread(read: Reader) -> Reader:
            return read if down == 1 else lambda which: read(np.arange(outs)[which] // down)

        return Integers(
            shape,
            bits,
            codes,
            spread(by_rows),
            middle if zeros is None else spread(_zeros(shape, bits, scale, zeros, middle)),
            columns,
            lowest,
        )

    def _block(self, name: str) -> Block | None:
        path = name.removesuffix(".weight_scale").removesuffix(".weight")
        return next((one.block for one in self.layers if one.block and _is_meant(one.targets, path)), None)

    def converts(self, weight: str) -> bool:
        """See `Scheme`."""
        path = weight.removesuffix(".weight")
        linear = is_linear(weight) or weight == "lm_head.weight"
        return linear and not any(_like(one, path) for one in self.ignored) and self._of(path) is not None

    def kept(self, weight: str) -> str:
        """See `Scheme`: four-bit floats times powers of two are floats of 16 bits."""
        one = self._of(weight.removesuffix(".weight"))
        if one is None or not one.packed or one.bits > 4 or one.group % GROUP or one.block:
            return ""
        return "BF16" if one.floats else IN_FOURS

    def weight_bytes(self, weight: str, outs: int, ins: int) -> int:
        """See `Scheme`."""
        one = self._of(weight.removesuffix(".weight"))
        assert one is not None
        scales = math.prod(grid_of((outs, ins), one.block or (1, one.group or ins)))
        if not one.packed:
            return outs * ins + 2 * scales
        words = outs * (-(-ins * one.bits // _WORD)) * 4
        if one.floats:
            return words + scales
        return words + 2 * scales + 16 + (0 if one.symmetric else scales * one.bits // 8)

    def _of(self, path: str) -> Layers | None:
        return next((one for one in self.layers if _is_meant(one.targets, path)), None)


def read_compressed(fields: Fields) -> CompressedScheme:
    """From a quantization_config. Raises: UnsupportedModel."""
    fields.ignore("global_compression_ratio", "kv_cache_scheme", "quantization_status", "version")
    fields.ignore("dequantize", "run_compressed", "use_optimized_inference")
    fields.expect("format", *_FORMATS)
    fields.expect("transform_config", {})
    fields.expect("moe_sparsity_config", {})
    sparsity = fields.any("sparsity_config", {})
    if not isinstance(sparsity, dict) or sparsity.get("format", "dense") != "dense":
        raise UnsupportedModel("quantization_config has a sparsity_config, and sparse weights are not read")
    groups = fields.any("config_groups")
    if (
        not isinstance(groups, dict)
        or not groups
        or not all(isinstance(one, dict) for one in groups.values())
    ):
        raise UnsupportedModel(f"quantization_config has config_groups {str(groups)[:80]}")
    outer = str(fields.any("format", "dense"))
    layers = tuple(_layers(Fields(one, "config_groups", UNKNOWN), outer) for one in groups.values())
    return CompressedScheme(layers, names(fields, "ignore"))


def _layers(fields: Fields, outer: str) -> Layers:
    fields.ignore("input_activations", "output_activations")
    fields.expect("format", *_FORMATS)
    form = str(fields.any("format", outer))
    targets, given = names(fields, "targets"), fields.any("weights")
    fields.close()
    if not isinstance(given, dict):
        raise UnsupportedModel(f"config_groups has weights {str(given)[:80]}")
    weights = Fields(given, "config_groups.weights", UNKNOWN)
    weights.ignore("actorder", "observer", "observer_kwargs", "scale_dtype", "zp_dtype", "is_mx")
    weights.expect("dynamic", False)
    weights.expect("strategy", "tensor", "channel", "group", "block", "tensor_group")
    floats = weights.any("type", "int") == "float"
    weights.expect("type", "int", "float")
    bits = weights.count("num_bits", 8)
    if bits not in ((4, 8) if floats else (2, 4, 8)):
        raise UnsupportedModel(
            f"config_groups has {bits} bits of type {'float' if floats else 'int'}, which is not read"
        )
    group = weights.any("group_size", 0)
    if type(group) is not int or not -1 <= group <= 1 << 20:
        raise UnsupportedModel(f"config_groups has group_size {str(group)[:80]}")
    symmetric = weights.flag("symmetric", True)
    block = block_of(weights.any("block_structure", None))
    weights.close()
    return Layers(targets, bits, floats, symmetric, max(0, group), block, "pack" in form)


def _zeros(shape: Block, bits: int, scale: Raw, zeros: Raw, middle: int) -> Reader:
    """By rows of blocks, as codes are counted. Raises: BadCheckpoint."""
    if zeros.dtype == "I8":
        read = scales_of(shape, zeros.require(("I8",), scale.shape), None, ("I8",))[1]
        return lambda which: read(which).astype(np.int16) + middle
    outs, groups = shape[0], scale.shape[-1] if scale.shape else 1
    zeros.require(("I32", "U32"), (-(-outs * bits // _WORD), groups))

    def packed(which: Which) -> Any:
        return unpack(zeros.array.T, bits)[:, :outs].T[which]

    return packed


def _four_bit_floats(packed: Raw, parts: Mapping[str, Raw]) -> Form:
    """MXFP4, or NVFP4 where there is one scale for all the others. Raises: BadCheckpoint."""
    outs, half = matrix_shape(packed)
    shape, overall = (outs, 2 * half), parts.get("global")
    if overall is None:
        block, scales = scales_of(shape, parts["scale"].as_powers(), None, ("F8_E8M0",))
        return Scaled(shape, block, lambda which: four_bit_floats(packed.array[which]), scales, "BF16")
    block, scales = scales_of(shape, parts["scale"], None, ("F8_E4M3", *FLOATS))
    overall.require(("F32",), (1,), ())

    def divided(which: Which) -> Floats:
        with np.errstate(divide="ignore", invalid="ignore"):  # whoever packs them refuses what is not finite
            return np.divide(scales(which), overall.floats().reshape(1, 1), dtype=np.float32)

    return Scaled(shape, block, lambda which: four_bit_floats(packed.array[which]), divided)


def _is_meant(targets: tuple[str, ...], path: str) -> bool:
    return any(target == "Linear" or _like(target, path) for target in targets)


def _like(pattern: str, path: str) -> bool:
    """Whether a path is meant by a name, or by a pattern of nothing but names with ".*" between them.

    Other patterns mean nothing here: what strangers write is no program to run.
    """
    if not pattern.startswith("re:"):
        return path == pattern
    first, *others = pattern.removeprefix("re:").removeprefix("^").replace("\\.", ".").split(".*")
    if not path.startswith(first.removesuffix("$")):
        return False
    at = len(first.removesuffix("$"))
    for piece in others:
        found = path.rfind(piece[:-1], at) if piece.endswith("$") else path.find(piece, at)
        if found < 0 or (piece.endswith("$") and found + len(piece) - 1 != len(path)):
            return False
        at = found + len(piece)
    return True
