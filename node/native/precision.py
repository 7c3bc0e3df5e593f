"""How a model's numbers are kept: one word for its matrices and its caches together."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Final

from node.formats.form import IN_FOURS
from node.native.gguf.quants import FOURS
from node.native.packed import Kind
from protocol.numerics import Numerics

# Of how weights are packed and computed with, see docs/numerics.md: another arithmetic has another number.
ARITHMETIC: Final = 1


# Forms that are what our own four bits are.
_FOURS: Final = frozenset({*FOURS, IN_FOURS})


@dataclass(frozen=True, slots=True)
class Precision:
    """The kinds of the matrices, and the bytes of a number in the caches."""

    name: str
    attention: Kind
    mlp: Kind
    head: Kind
    kv_bytes: int

    @property
    def numerics(self) -> Numerics:
        """How it is announced: with the weights as stored this determines every bit."""
        return Numerics(self.name, ARITHMETIC)


def kept_kind(kind: Kind, stored: Collection[str], whole: bool = True) -> Kind:
    """The kind that a matrix is kept in whose parts are stored in these forms.

    What is stored in bf16 need not be widened: the kernels do that, and compute the same bits in half the memory. And
    what is stored in four bits gains nothing by more of them, unless its groups are broken up: `whole` says not.
    """
    if kind is Kind.F32 and set(stored) == {"BF16"}:
        return Kind.BF16
    return Kind.INT4 if kind is Kind.INT8 and whole and set(stored) <= _FOURS else kind


def matrix_kinds(precision: Precision) -> Mapping[str, Kind]:
    """The kind of each matrix of a block but its experts, by its field in `BlockWeights`."""
    attention = dict.fromkeys(("qkv", "out", "query_up", "key_up", "value_up"), precision.attention)
    mlp = dict.fromkeys(("gate_up", "down"), precision.mlp)
    # What routes is small, and a change of it is another choice.
    return {**attention, **mlp, "router": Kind.F32, "shared_gate": Kind.F32}


F32: Final = Precision("f32", Kind.F32, Kind.F32, Kind.F32, 4)
BF16: Final = Precision("bf16", Kind.BF16, Kind.BF16, Kind.BF16, 4)
INT8: Final = Precision("int8", Kind.INT8, Kind.INT8, Kind.INT8, 2)
# Four bits in the MLP alone: what attention and the head lose by them is more than they gain.
INT4: Final = Precision("int4", Kind.INT8, Kind.INT4, Kind.INT8, 2)
PRECISIONS: Final = {precision.name: precision for precision in (F32, BF16, INT8, INT4)}
