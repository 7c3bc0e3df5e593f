"""Which weights are kept in which kind where a family keeps its own modules, and how that is named."""

from __future__ import annotations

from typing import Final

from node.native.packed import Kind
from node.native.precision import Precision

_ATTENTION: Final = "att"


def kind_of(precision: Precision, path: str, stack: str) -> Kind:
    """The kind of a weight or a module at `path`; `stack` is the path of the decoder layers, outside is the head."""
    inside = path.removeprefix(stack + ".")
    if inside == path:
        return precision.head
    return precision.attention if _ATTENTION in inside else precision.mlp


def packed_bytes(kind: Kind, count: int) -> int:
    """Memory that so many weights take."""
    return kind.code_bytes(1, count) + kind.scale_bytes(1, count)
