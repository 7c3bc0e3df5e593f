"""From a GGUF file's metadata to the config.json that transformers would have for the same model."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from node.native.families import FAMILIES, FULL, SLIDING, Family, Flag
from node.native.fields import Fields
from node.native.gguf.architectures import ARCHITECTURES
from node.native.gguf.header import Entry
from protocol import limits
from protocol.errors import UnsupportedModel

# Reads a small tensor of floats whole.
ReadVector = Callable[[str], NDArray[np.float32]]

_RENAMED: Final = {
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
}
# Fields that say again what tensors say, or nothing about what is computed.
_HARMLESS: Final = ("vocab_size", "rope.scaling.finetuned", "rope.scaling.attn_factor", "attention.causal")
# A word about a model has so many characters.
_TEXT: Final = 64
# Of each block whether it has a window: no other field is known that tells blocks apart.
_PATTERN: Final = "attention.sliding_window_pattern"
_LLAMA3_CONTEXT: Final = 8192


def read_config(
    metadata: Mapping[str, Any], tensors: Mapping[str, Entry], vector: ReadVector
) -> dict[str, Any]:
    """The config. Raises: UnsupportedModel, naming the field or tensor that is not known."""
    architecture = metadata.get("general.architecture")
    if not isinstance(architecture, str) or architecture not in ARCHITECTURES:
        raise UnsupportedModel(f"GGUF models of architecture {str(architecture)[:_TEXT]!r} are not known")
    fields = _fields(metadata, architecture)
    fields.ignore(*_HARMLESS)
    kind = ARCHITECTURES[architecture].model_type
    if kind == "llama" and fields.has("expert_count"):
        kind = "mixtral"
    family = FAMILIES[kind]
    config: dict[str, Any] = {"model_type": kind}
    config["num_hidden_layers"] = fields.count("block_count", most=limits.STAGES - 2)
    config |= {theirs: fields.count(name, most=1 << 40) for name, theirs in _RENAMED.items()}
    config["num_key_value_heads"] = fields.count("attention.head_count_kv", config["num_attention_heads"])
    config["vocab_size"] = _vocabulary(tensors)
    config["tie_word_embeddings"] = "output.weight" not in tensors
    config |= _heads(fields, family)
    config |= _norms(fields, family)
    config |= _biases(family, tensors)
    config |= _rotation(fields, config, tensors, vector)
    config |= _OWN.get(kind, _nothing)(fields, config)
    if kind == "stablelm":  # files of the first converters say it of all models
        fields.ignore("use_parallel_residual")
        config["use_parallel_residual"] = "blk.0.ffn_norm.weight" not in tensors
    fields.close()
    for end in ("bos", "eos", "padding"):
        token = metadata.get(f"tokenizer.ggml.{end}_token_id")
        if type(token) is int:
            config[f"{end.removesuffix('ding')}_token_id"] = token
    return config


def _fields(metadata: Mapping[str, Any], architecture: str) -> Fields:
    """What the file says of the model itself."""
    prefix = f"{architecture}."
    own = {key.removeprefix(prefix): value for key, value in metadata.items() if key.startswith(prefix)}
    for key, value in own.items():
        fits = not isinstance(value, str | list | np.ndarray)
        fits |= isinstance(value, str) and len(value) <= _TEXT
        fits |= isinstance(value, np.ndarray) and key == _PATTERN and len(value) <= limits.STAGES
        if not fits:
            raise UnsupportedModel(f"the GGUF file has {prefix}{key} of another form")
    return Fields(own, "the GGUF file")


def _vocabulary(tensors: Mapping[str, Entry]) -> int:
    if "token_embd.weight" not in tensors:
        raise UnsupportedModel("the GGUF file has no token_embd.weight, so no vocabulary is known")
    return tensors["token_embd.weight"].shape[0]


def _heads(fields: Fields, family: Family) -> dict[str, Any]:
    """The size of a head, and the share of it that turns."""
    heads, hidden = fields.count("attention.head_count"), fields.count("embedding_length")
    size = fields.count("attention.key_length", max(1, hidden // heads), most=4096)
    if fields.count("attention.value_length", size, most=4096) != size:
        raise UnsupportedModel("the GGUF file has values of another size than keys")
    turning = fields.count("rope.dimension_count", size, most=4096)
    if family.rotated is not None:
        return {"head_dim": size, "partial_rotary_factor": turning / size}
    if turning != size:
        raise UnsupportedModel(f"the GGUF file turns {turning} numbers of {size}, which its family does not")
    return {"head_dim": size}


def _norms(fields: Fields, family: Family) -> dict[str, Any]:
    which = "rms_epsilon" if family.norm == "rms" else "epsilon"
    return {family.epsilon_field: fields.number(f"attention.layer_norm_{which}")}


def _biases(family: Family, tensors: Mapping[str, Entry]) -> dict[str, Any]:
    """The flags of biases, by the first block's tensors."""
    found: dict[str, bool] = {}
    where = ((family.query_bias, "attn_q"), (family.out_bias, "attn_output"), (family.mlp_bias, "ffn_up"))
    for flag, name in where:
        if isinstance(flag, Flag):
            found[flag.name] = found.get(flag.name, False) or f"blk.0.{name}.bias" in tensors
    return found


def _rotation(
    fields: Fields, config: Mapping[str, Any], tensors: Mapping[str, Entry], vector: ReadVector
) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if fields.has("rope.freq_base"):
        found["rope_theta"] = fields.number("rope.freq_base")
    kind = fields.text("rope.scaling.type", "none")
    original = fields.count("rope.scaling.original_context_length", _LLAMA3_CONTEXT, most=1 << 40)
    if kind in ("linear", "yarn"):
        found["rope_scaling"] = {"rope_type": kind, "factor": fields.number("rope.scaling.factor")}
        if kind == "yarn":
            found["rope_scaling"]["original_max_position_embeddings"] = original
    elif kind not in ("none", "longrope"):
        raise UnsupportedModel(f"the GGUF file has rope.scaling.type {kind!r}")
    if "rope_factors_long.weight" in tensors:
        both = {
            f"{name}_factor": _floats(vector(f"rope_factors_{name}.weight")) for name in ("short", "long")
        }
        found["rope_scaling"] = {"rope_type": "longrope", **both}
        found["original_max_position_embeddings"] = original
    if "rope_freqs.weight" in tensors:
        theta = found.get("rope_theta", 10_000.0)
        found["rope_scaling"] = _llama3(vector("rope_freqs.weight"), theta, original)
    return found


def _floats(values: NDArray[np.float32]) -> list[float]:
    return [float(value) for value in values]


def _llama3(divisors: NDArray[np.float32], theta: float, original: int) -> dict[str, Any]:
    """The scaling that these divisors of frequencies come from: its four numbers are not in the file.

    Raises: UnsupportedModel, where they come from another one.
    """
    factor, low, high = float(divisors.max()), 1.0, 4.0
    if not (math.isfinite(factor) and factor >= 1 and theta > 1):
        raise UnsupportedModel("the GGUF file has rope_freqs that make no sense")
    turns = original / (2 * np.pi * theta ** (np.arange(len(divisors)) / len(divisors)))
    smooth = np.clip((turns - low) / (high - low), 0, 1)
    expected = 1 / ((1 - smooth) / factor + smooth)
    if not np.allclose(divisors, expected, rtol=1e-3):
        raise UnsupportedModel("the GGUF file has rope_freqs of a scaling that is not known")
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": low,
        "high_freq_factor": high,
        "original_max_position_embeddings": original,
    }


def _nothing(fields: Fields, config: Mapping[str, Any]) -> dict[str, Any]:
    return {}


def _granite(fields: Fields, config: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "attention_multiplier": fields.number("attention.scale"),
        "embedding_multiplier": fields.number("embedding_scale"),
        "residual_multiplier": fields.number("residual_scale"),
        "logits_scaling": fields.number("logit_scale"),
    }


def _window(fields: Fields, config: Mapping[str, Any]) -> dict[str, Any]:
    width = fields.any("attention.sliding_window", None)
    if type(width) is int and not width:  # so Phi's files say that there is none
        width = None
    return {"sliding_window": width and fields.count("attention.sliding_window", most=1 << 40)}


def _windows(fields: Fields, config: Mapping[str, Any]) -> dict[str, Any]:
    """The window, and which blocks have it where the file says that too."""
    found = _window(fields, config)
    pattern = fields.any(_PATTERN, None)
    if isinstance(pattern, np.ndarray):
        found["layer_types"] = [SLIDING if sliding else FULL for sliding in pattern]
    elif pattern is not None:
        every = fields.count(_PATTERN)
        blocks = range(1, config["num_hidden_layers"] + 1)
        found["layer_types"] = [SLIDING if index % every else FULL for index in blocks]
    return found


def _gemma2(fields: Fields, config: Mapping[str, Any]) -> dict[str, Any]:
    return {
        **_windows(fields, config),
        "attn_logit_softcapping": fields.number("attn_logit_softcapping"),
        "final_logit_softcapping": fields.number("final_logit_softcapping"),
        "query_pre_attn_scalar": _query_scalar(config, blocks=46),
    }


def _gemma3(fields: Fields, config: Mapping[str, Any]) -> dict[str, Any]:
    found = {**_windows(fields, config), "query_pre_attn_scalar": _query_scalar(config, blocks=62)}
    if fields.has("rope.freq_base_swa"):
        found["rope_local_base_freq"] = fields.number("rope.freq_base_swa")
    return found


def _query_scalar(config: Mapping[str, Any], blocks: int) -> float:
    """What scores are divided by the root of; no file says it, and the largest of a family has another."""
    if config["num_hidden_layers"] == blocks:
        return float(config["hidden_size"] / config["num_attention_heads"])
    return float(config["head_dim"])


def _mixtral(fields: Fields, config: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "num_local_experts": fields.count("expert_count"),
        "num_experts_per_tok": fields.count("expert_used_count"),
    }


def _qwen3_moe(fields: Fields, config: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "num_experts": fields.count("expert_count"),
        "num_experts_per_tok": fields.count("expert_used_count"),
        "moe_intermediate_size": fields.count("expert_feed_forward_length"),
        "norm_topk_prob": True,
    }


def _starcoder2(fields: Fields, config: Mapping[str, Any]) -> dict[str, Any]:
    return {"hidden_act": "gelu_pytorch_tanh"}


_OWN: Final[Mapping[str, Callable[[Fields, Mapping[str, Any]], dict[str, Any]]]] = {
    "granite": _granite,
    "phi3": _window,
    "gemma2": _gemma2,
    "gemma3_text": _gemma3,
    "mixtral": _mixtral,
    "qwen3_moe": _qwen3_moe,
    "starcoder2": _starcoder2,
}
