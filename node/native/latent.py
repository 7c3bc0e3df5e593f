"""Latents, as config.json says what stands for the keys and values of all heads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from node.native.families import Family
from node.native.fields import Fields
from node.native.packed import GROUP
from node.native.shape import Latent
from protocol.errors import UnsupportedModel

# That of the inner norms, whatever config.json says of the others.
_EPSILON: Final = 1e-6
# Training alone knows them.
_HARMLESS: Final = ("aux_loss_alpha", "embedding_initializer_range", "ep_size", "seq_aux")


@dataclass(frozen=True, slots=True)
class StoredHead:
    """The numbers of a head in the checkpoint: those of its query that stay, those that turn, those of its value."""

    own: int
    turning: int
    value: int

    @property
    def query(self) -> int:
        """Those of its query."""
        return self.own + self.turning


def read_latent(family: Family, fields: Fields, heads: int, value: int) -> tuple[Latent, StoredHead]:
    """The latent of a family that has one, and its heads. Raises: UnsupportedModel.

    value: the numbers of a head's value where config.json does not say
    """
    fields.ignore(*_HARMLESS)
    fields.expect("moe_layer_freq", 1)
    for name in family.stated:
        fields.any(name)
    head = StoredHead(
        own=fields.count("qk_nope_head_dim", most=4096),
        turning=fields.count("qk_rope_head_dim", most=4096),
        value=fields.count("v_head_dim", value, most=4096),
    )
    fields.expect("head_dim", head.turning)
    fields.expect("qk_head_dim", head.query)
    fields.expect("num_key_value_heads", heads)
    size = fields.count("kv_lora_rank", most=4096)
    has_rank = not fields.has("q_lora_rank") or fields.any("q_lora_rank", None) is not None
    rank = fields.count("q_lora_rank") if has_rank else 0
    for name, numbers in (("kv_lora_rank", size), ("q_lora_rank", rank)):
        if numbers % GROUP:  # they are normed, and zeros would count
            raise UnsupportedModel(f"{name} {numbers} is no multiple of {GROUP}")
    return Latent(size, rank, whole_groups(head.own), whole_groups(head.value), _EPSILON), head


def whole_groups(numbers: int) -> int:
    """The next multiple of GROUP."""
    return -(-numbers // GROUP) * GROUP
