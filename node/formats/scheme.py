"""What every way to quantise a checkpoint says of itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Protocol

from node.formats.form import Form
from node.formats.raw import Raw
from node.native.fields import Fields
from protocol.errors import BadCheckpoint, UnsupportedModel

# Modules whose weights routes depend on, and ends: what no scheme is expected to have quantised.
_PLAIN: Final = frozenset({"gate", "router", "shared_expert_gate", "embed_tokens", "lm_head"})


# Of a field that nobody asked for.
UNKNOWN: Final = "which is not read"


class Scheme(Protocol):
    """How the weights of one checkpoint are quantised, as its config.json says.

    title     for people, such as "gptq, 4 bits"
    parts     what the names of a weight's tensors end with, what its own name ends with instead, and which part each
              is. A tensor of its own name is its part "weight".
    needed    parts without which there is none
    dropped   what the names of tensors end with that say how activations are rounded, which are not rounded here
    """

    @property
    def title(self) -> str:
        """See above."""

    @property
    def parts(self) -> Mapping[str, tuple[str, str]]:
        """See above."""

    @property
    def needed(self) -> frozenset[str]:
        """See above."""

    @property
    def dropped(self) -> tuple[str, ...]:
        """See above."""

    def form(self, name: str, parts: Mapping[str, Raw]) -> Form:
        """The form of a weight. Reads no more than says what shape it has. Raises: BadCheckpoint."""

    def converts(self, weight: str) -> bool:
        """Whether a weight, by its plain name, is expected to be quantised."""

    def kept(self, weight: str) -> str:
        """`Form.kept` of a weight that is, as far as config.json says."""

    def weight_bytes(self, weight: str, outs: int, ins: int) -> int:
        """About the bytes in the files of a weight that is, in a form of this scheme."""


def is_linear(weight: str) -> bool:
    """Whether a weight, by its name, is of a linear layer that schemes quantise unless they are told not to."""
    module, _, leaf = weight.rpartition(".")
    return leaf == "weight" and not set(module.split(".")) & _PLAIN


def need_columns(name: str, columns: int, groups: int) -> None:
    """Raises: BadCheckpoint, unless so many columns make so many groups."""
    if not groups or columns % groups:
        raise BadCheckpoint(f"{name}: {columns} columns do not make {groups} groups")


def names(fields: Fields, name: str) -> tuple[str, ...]:
    """A field with a list of names, which may be absent. Raises: UnsupportedModel."""
    found = fields.any(name, [])
    if not isinstance(found, list) or not all(isinstance(entry, str) for entry in found):
        raise UnsupportedModel(f"quantization_config has {name} {str(found)[:80]}")
    return tuple(found)
