"""GPTQ and AWQ: codes in 32-bit words, stored with their columns as rows; a scale and a zero for each group."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from node.formats.form import GROUP, IN_FOURS, Form, Integers
from node.formats.raw import FLOATS, Raw, Which, floats_of, unpack
from node.formats.scales import columns_of, matrix_shape
from node.formats.scheme import is_linear, names, need_columns
from node.native.fields import Fields
from protocol.errors import UnsupportedModel

_WORDS: Final = ("I32", "U32")
_WORD: Final = 32
# Of eight neighbours in AWQ's words of four-bit codes, where each is, counted from the lowest bits.
_PLACES: Final = np.argsort((0, 2, 4, 6, 1, 3, 5, 7))
_AWQ_LAYOUTS: Final = ("gemm", "exllama", "ipex")
# What is said of how the numbers were found, and of how they were computed with. Zeros and orders are in the tensors.
_HARMLESS: Final = (
    *("act_group_aware", "adapter", "backend", "batch_size", "block_name_to_quantize", "cache_block_outputs"),
    *("damp_auto_increment", "damp_percent", "dataset", "disable_exllama", "do_fuse"),
    *("exllama_config", "fuse_max_seq_len", "hyb_act", "is_marlin_format", "max_input_length", "meta"),
    *("model_file_base_name", "model_name_or_path", "model_seqlen", "module_name_preceding_first_block"),
    *("modules_in_block_to_quantize", "modules_to_fuse", "mse", "pad_token_id", "quantizer"),
    *("sym", "tokenizer", "true_sequential", "use_cuda_fp16", "use_exllama", "v2", "zero_point"),
)


@dataclass(frozen=True)
class WordScheme:
    """See `Scheme`.

    group    columns that share a scale, as config.json says: files are read by their shapes. -1: all
    spared   what the paths of modules hold that are not quantised
    first    GPTQ's first version, which keeps zeros less one
    awq      AWQ's layout
    shuffled columns are not in the order of their groups
    """

    bits: int
    group: int
    spared: tuple[str, ...] = ()
    first: bool = False
    awq: bool = False
    head: bool = False
    shuffled: bool = False
    dropped: tuple[str, ...] = ()
    needed: frozenset[str] = frozenset({"qweight", "qzeros", "scales"})

    @property
    def title(self) -> str:
        """See `Scheme`."""
        grouped = f" in groups of {self.group}" if self.group > 0 else ""
        return f"{'awq' if self.awq else 'gptq'}, {self.bits} bits{grouped}"

    @property
    def parts(self) -> Mapping[str, tuple[str, str]]:
        """See `Scheme`."""
        return {f".{part}": (".weight", part) for part in ("qweight", "qzeros", "scales", "g_idx")}

    def form(self, name: str, parts: Mapping[str, Raw]) -> Form:
        """See `Scheme`."""
        per, most = _WORD // self.bits, (1 << self.bits) - 1
        words, scales = parts["qweight"].require(_WORDS), parts["scales"].require(FLOATS)
        down, across = matrix_shape(words)
        ins, outs = (1 if self.awq else per) * down, (per if self.awq else 1) * across
        groups, _ = matrix_shape(scales)
        need_columns(name, ins, groups)
        scales.require(FLOATS, (groups, outs))
        zeros = parts["qzeros"].require(_WORDS, (groups, -(-outs // per)))
        order = parts.get("g_idx")
        if order is not None and order.array.size:
            order.require(_WORDS, (ins,))

        def codes(which: Which) -> NDArray[np.uint8]:
            if self.awq:
                return self._across(words.array, which)
            return unpack(words.array[:, which].T, self.bits)

        return Integers(
            (outs, ins),
            self.bits,
            codes=codes,
            scales=lambda which: floats_of(scales.dtype, scales.array[:, which].T),
            zeros=lambda which: self._across(zeros.array, which) + np.uint8(self.first) & np.uint8(most),
            columns=lambda: None if order is None else columns_of(order, groups),
        )

    def _across(self, words: NDArray[Any], which: Which) -> NDArray[np.uint8]:
        """Of words [n, outs / codes in a word] the codes of some outs: [outs, n]."""
        per = _WORD // self.bits
        outs = np.arange(words.shape[1] * per)[which]
        first = outs.min() // per
        codes = unpack(words[:, first : outs.max() // per + 1], self.bits)
        if self.awq:
            codes = codes.reshape(len(codes), -1, per)[..., _PLACES].reshape(len(codes), -1)
        return codes[:, outs - per * first].T

    def converts(self, weight: str) -> bool:
        """See `Scheme`."""
        if weight == "lm_head.weight":
            return self.head
        return is_linear(weight) and not any(name in weight for name in self.spared)

    def kept(self, weight: str) -> str:
        """See `Scheme`."""
        whole = self.group == -1 or self.group % GROUP == 0
        return IN_FOURS if self.bits <= 4 and whole and not self.shuffled else ""

    def weight_bytes(self, weight: str, outs: int, ins: int) -> int:
        """See `Scheme`."""
        groups = -(-ins // self.group) if self.group > 0 else 1
        order = 0 if self.awq else 4 * ins
        return (outs * ins * self.bits + groups * outs * (16 + self.bits)) // 8 + order


def read_gptq(fields: Fields) -> WordScheme:
    """From a quantization_config. Raises: UnsupportedModel."""
    fields.ignore(*_HARMLESS)
    bits = _bits(fields, (2, 4, 8))
    layout = str(fields.any("checkpoint_format", fields.any("format", "gptq"))).lower()
    if layout not in ("gptq", "gptq_v2"):
        raise UnsupportedModel(
            f"quantization_config has checkpoint_format {layout[:80]!r}, which is not read"
        )
    fields.expect("pack_dtype", "int32")
    spared = _spared_by_rules(fields)
    shuffled = fields.flag("desc_act", False) and not fields.flag("static_groups", False)
    fields.ignore("static_groups")
    head, group = fields.flag("lm_head", False), _group(fields, "group_size")
    return WordScheme(bits, group, spared, layout == "gptq", head=head, shuffled=shuffled)


def read_awq(fields: Fields) -> WordScheme:
    """From a quantization_config. Raises: UnsupportedModel."""
    fields.ignore(*_HARMLESS)
    bits = _bits(fields, (4,), "w_bit")
    layout = str(fields.any("version", fields.any("format", "gemm"))).lower()
    if layout not in _AWQ_LAYOUTS:
        raise UnsupportedModel(f"quantization_config has version {layout[:80]!r}, which is not read")
    group = _group(fields, "q_group_size" if fields.has("q_group_size") else "group_size")
    return WordScheme(bits, group, names(fields, "modules_to_not_convert"), awq=True)


def _bits(fields: Fields, known: tuple[int, ...], other: str = "bits") -> int:
    bits = fields.any("bits", None) or fields.any(other, None)
    if type(bits) is not int or bits not in known:
        raise UnsupportedModel(f"quantization_config has {str(bits)[:80]} bits; those read are {known}")
    return bits


def _group(fields: Fields, name: str) -> int:
    group = fields.any(name, 128)
    if type(group) is not int or not (group == -1 or 1 <= group <= 1 << 20):
        raise UnsupportedModel(f"quantization_config has {name} {str(group)[:80]}")
    return group


def _spared_by_rules(fields: Fields) -> tuple[str, ...]:
    """What `dynamic` leaves as it is. It may say what other layers have instead, which is not read."""
    rules = fields.any("dynamic", {})
    if not isinstance(rules, dict) or not all(str(rule).startswith("-:") for rule in rules):
        raise UnsupportedModel("quantization_config has dynamic, with other bits or groups for some layers")
    plain = (str(rule).removeprefix("-:").replace("\\", "").strip(".*^$") for rule in rules)
    return tuple(name for name in plain if name)
