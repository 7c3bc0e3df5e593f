"""What llama.cpp calls the models that the kernels know, and what it does to their tensors."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from node.engine.shards import StoredTensor
from node.native.experts import MOST_EXPERTS
from node.native.gguf.header import Entry
from protocol.errors import UnsupportedModel

_ENDS: Final = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_BLOCK: Final = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "ffn_gate_inp": "mlp.gate",
    "ffn_gate_exps": "mlp.experts.{}.gate_proj",
    "ffn_up_exps": "mlp.experts.{}.up_proj",
    "ffn_down_exps": "mlp.experts.{}.down_proj",
}
_MIXTRAL: Final = {
    "ffn_gate_inp": "block_sparse_moe.gate",
    "ffn_gate_exps": "block_sparse_moe.experts.{}.w1",
    "ffn_up_exps": "block_sparse_moe.experts.{}.w3",
    "ffn_down_exps": "block_sparse_moe.experts.{}.w2",
}
_AFTER: Final = {
    "post_attention_norm": "post_attention_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_SANDWICH: Final = {**_AFTER, "ffn_norm": "pre_feedforward_layernorm"}
# Tensors that are read for config.json, and for nothing else.
_FACTORS: Final = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")
_NAME: Final = re.compile(r"(?:blk\.(0|[1-9]\d{0,3})\.)?(\w+)\.(weight|bias)", re.ASCII)


@dataclass(frozen=True, slots=True)
class Architecture:
    """A model in transformers' words.

    names    of a block's tensors, where they differ from llama's
    turned   rows of queries and keys are stored with those next to one another that turn together
    raised   norms are stored with one added
    """

    model_type: str
    names: Mapping[str, str] = field(default_factory=dict)
    turned: bool = False
    raised: bool = False


@dataclass(frozen=True, slots=True)
class GgufTensor(StoredTensor):
    """A tensor by transformers' name; `dtype` is its type as GGUF has it."""


ARCHITECTURES: Final[Mapping[str, Architecture]] = {
    "llama": Architecture("llama", _MIXTRAL, turned=True),
    "smollm3": Architecture("smollm3", turned=True),
    "granite": Architecture("granite", turned=True),
    "qwen2": Architecture("qwen2"),
    "qwen3": Architecture("qwen3"),
    "qwen3moe": Architecture("qwen3_moe"),
    "phi3": Architecture("phi3", {"attn_qkv": "self_attn.qkv_proj", "ffn_up": "mlp.gate_up_proj"}),
    "gemma": Architecture("gemma", raised=True),
    "gemma2": Architecture("gemma2", _SANDWICH, raised=True),
    "gemma3": Architecture("gemma3_text", _SANDWICH, raised=True),
    "olmo2": Architecture("olmo2", _AFTER),
    "glm4": Architecture(
        "glm4",
        {
            "post_attention_norm": "post_self_attn_layernorm",
            "ffn_norm": "post_attention_layernorm",
            "post_ffw_norm": "post_mlp_layernorm",
            "ffn_up": "mlp.gate_up_proj",
        },
    ),
    "starcoder2": Architecture("starcoder2", {"ffn_up": "mlp.c_fc", "ffn_down": "mlp.c_proj"}),
    "stablelm": Architecture("stablelm"),
}


def rename(architecture: str, name: str, entry: Entry, config: Mapping[str, Any]) -> dict[str, GgufTensor]:
    """What one tensor of a file is to transformers: nothing, a tensor, or one of each expert.

    Raises: UnsupportedModel.
    """
    if name in _FACTORS:
        return {}
    found, known = _NAME.fullmatch(name), ARCHITECTURES[architecture]
    block, own, what = found.groups() if found else (None, "", "")
    theirs = _ENDS.get(own) if block is None else known.names.get(own, _BLOCK.get(own))
    if theirs is None:
        raise UnsupportedModel(f"the native kernels do not know the tensor {name}")
    target = f"{theirs}.{what}" if block is None else f"model.layers.{block}.{theirs}.{what}"
    if "{}" in theirs:
        return _experts(target, entry)
    heads = (
        {"attn_q": "num_attention_heads", "attn_k": "num_key_value_heads"}.get(own) if known.turned else None
    )
    raised = known.raised and own.endswith("norm")
    tensor = GgufTensor(
        entry.type, entry.shape, entry.start, entry.stop, config[heads] if heads else 0, raised
    )
    return {target: tensor}


def _experts(target: str, entry: Entry) -> dict[str, GgufTensor]:
    """The matrices that lie behind one another in a tensor."""
    count, *shape = entry.shape
    if count > MOST_EXPERTS:
        raise UnsupportedModel(f"{target.format('*')} is said to be of {count} experts")
    size = (entry.stop - entry.start) // count
    starts = range(entry.start, entry.stop, size)
    return {
        target.format(index): GgufTensor(entry.type, tuple(shape), start, start + size)
        for index, start in enumerate(starts)
    }
