"""How a model's numbers are kept: one word for its matrices and its caches together."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Final

from node.native.packed import Kind, padded
from node.native.shape import Shape
from protocol.numerics import Numerics

# Of how weights are packed and computed with, see docs/numerics.md: another arithmetic has another number.
ARITHMETIC: Final = 1


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

    def kept(self, stored: str) -> Precision:
        """The same for matrices that are stored so ("F32", "F16", "BF16").

        What is stored in bf16 need not be widened: the kernels do that, and compute the same bits in half the memory.
        """
        attention, mlp, head = (kept_kind(kind, {stored}) for kind in (self.attention, self.mlp, self.head))
        return replace(self, attention=attention, mlp=mlp, head=head)

    def block_bytes(self, shape: Shape) -> int:
        """Memory that the matrices of one block take, about."""
        queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
        attention = _bytes(self.attention, queries + 2 * keys, shape.hidden)
        attention += _bytes(self.attention, shape.hidden, queries)
        matrices = 3 if shape.gated else 2
        dense = matrices * _bytes(self.mlp, shape.intermediate, shape.hidden)
        if shape.experts is None:
            return attention + dense
        experts = shape.experts
        routed = _bytes(Kind.F32, padded(experts.count), shape.hidden)
        routed += matrices * _bytes(self.mlp, experts.shared, shape.hidden)
        routed += matrices * experts.count * _bytes(self.mlp, experts.intermediate, shape.hidden)
        return attention + max(dense, routed)

    def head_bytes(self, shape: Shape) -> int:
        """Memory that the head takes."""
        return _bytes(self.head, padded(shape.vocabulary), shape.hidden)


def kept_kind(kind: Kind, stored: Collection[str]) -> Kind:
    """Of a matrix whose parts are stored in these dtypes; see `Precision.kept`."""
    return Kind.BF16 if kind is Kind.F32 and set(stored) == {"BF16"} else kind


def _bytes(kind: Kind, outs: int, ins: int) -> int:
    return kind.code_bytes(outs, ins) + kind.scale_bytes(outs, ins)


F32: Final = Precision("f32", Kind.F32, Kind.F32, Kind.F32, 4)
BF16: Final = Precision("bf16", Kind.BF16, Kind.BF16, Kind.BF16, 4)
INT8: Final = Precision("int8", Kind.INT8, Kind.INT8, Kind.INT8, 2)
# Four bits in the MLP alone: what attention and the head lose by them is more than they gain.
INT4: Final = Precision("int4", Kind.INT8, Kind.INT4, Kind.INT8, 2)
PRECISIONS: Final = {precision.name: precision for precision in (F32, BF16, INT8, INT4)}
