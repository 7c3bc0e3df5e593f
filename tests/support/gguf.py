"""GGUF files as llama.cpp's converter writes them: any metadata and tensors, or a checkpoint of transformers.

Written from the format's description and what the converter does, not from the code that reads them.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

# A tensor as it lies in the file: the number of its type, its shape with rows first, its bytes.
Stored = tuple[int, tuple[int, ...], bytes]
Store = Callable[[str, NDArray[np.float32]], Stored]

ALIGNMENT = 32


def write_gguf(path: Path, metadata: Mapping[str, Any], tensors: Mapping[str, Stored]) -> Path:
    """Write a file of version 3; ints are written as uint32, floats as float32."""
    table, data = b"", b""
    for name, (kind, shape, raw) in tensors.items():
        dimensions = struct.pack(f"<I{len(shape)}Q", len(shape), *reversed(shape))
        table += _string(name) + dimensions + struct.pack("<IQ", kind, len(data))
        data += raw + bytes(-len(raw) % ALIGNMENT)
    pairs = b"".join(_string(key) + _value(value) for key, value in metadata.items())
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata)) + pairs + table
    path.write_bytes(head + bytes(-len(head) % ALIGNMENT) + data)
    return path


def _string(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


def _value(value: Any) -> bytes:
    match value:
        case bool():
            return struct.pack("<IB", 7, value)
        case int():
            return struct.pack("<II", 4, value)
        case float():
            return struct.pack("<If", 6, value)
        case str():
            return struct.pack("<I", 8) + _string(value)
        case [] | [str(), *_]:
            return struct.pack("<IIQ", 9, 8, len(value)) + b"".join(map(_string, value))
        case [float(), *_]:
            return struct.pack(f"<IIQ{len(value)}f", 9, 6, len(value), *value)
        case _:
            return struct.pack(f"<IIQ{len(value)}i", 9, 5, len(value), *value)


def as_f32(name: str, values: NDArray[np.float32]) -> Stored:
    """Plain floats."""
    return 0, values.shape, values.astype("<f4").tobytes()


def as_q8_0(name: str, values: NDArray[np.float32]) -> Stored:
    """Matrices in groups of 32 bytes with a scale in fp16, everything else plain."""
    if values.ndim < 2:
        return as_f32(name, values)
    groups = values.reshape(-1, 32)
    steps = np.abs(groups).max(axis=1, keepdims=True) / np.float32(127)
    codes = np.round(np.divide(groups, steps, out=np.zeros_like(groups), where=steps > 0)).astype(np.int8)
    blocks = np.concatenate((steps.astype("<f2").view(np.uint8), codes.view(np.uint8)), axis=1)
    return 8, values.shape, blocks.tobytes()


def as_q4_0(name: str, values: NDArray[np.float32]) -> Stored:
    """Matrices in groups of 32 codes of four bits, of which 8 is zero; steps may be negative."""
    if values.ndim < 2:
        return as_f32(name, values)
    groups = values.reshape(-1, 32)
    greatest = np.take_along_axis(groups, np.abs(groups).argmax(axis=1)[:, None], 1)
    steps = greatest / np.float32(-8)
    codes = np.clip(np.round(groups / steps) + 8, 0, 15).astype(np.uint8)
    blocks = np.concatenate((steps.astype("<f2").view(np.uint8), codes[:, :16] | codes[:, 16:] << 4), axis=1)
    return 2, values.shape, blocks.tobytes()


_ENDS = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
_BLOCK = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.qkv_proj": "attn_qkv",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.gate_up_proj": "ffn_up",
    "mlp.c_fc": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "mlp.c_proj": "ffn_down",
    "mlp.gate": "ffn_gate_inp",
    "block_sparse_moe.gate": "ffn_gate_inp",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "post_self_attn_layernorm": "post_attention_norm",
    "post_mlp_layernorm": "post_ffw_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
_EXPERT = {
    "gate_proj": "ffn_gate_exps",
    "up_proj": "ffn_up_exps",
    "down_proj": "ffn_down_exps",
    "w1": "ffn_gate_exps",
    "w3": "ffn_up_exps",
    "w2": "ffn_down_exps",
}
_SANDWICHED = {"post_attention_layernorm": "post_attention_norm", "pre_feedforward_layernorm": "ffn_norm"}
_TURNED = ("llama", "mixtral", "granite", "smollm3")
_RAISED = ("gemma", "gemma2", "gemma3_text")
_ARCHITECTURES = {"gemma3_text": "gemma3", "mixtral": "llama", "qwen3_moe": "qwen3moe"}
_FIELDS = {
    "max_position_embeddings": "context_length",
    "num_hidden_layers": "block_count",
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
    "layer_norm_eps": "attention.layer_norm_epsilon",
    "norm_epsilon": "attention.layer_norm_epsilon",
    "sliding_window": "attention.sliding_window",
    "attention_multiplier": "attention.scale",
    "embedding_multiplier": "embedding_scale",
    "residual_multiplier": "residual_scale",
    "logits_scaling": "logit_scale",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
    "use_parallel_residual": "use_parallel_residual",
    "num_local_experts": "expert_count",
    "num_experts": "expert_count",
    "num_experts_per_tok": "expert_used_count",
    "moe_intermediate_size": "expert_feed_forward_length",
    "original_max_position_embeddings": "rope.scaling.original_context_length",
}


def convert(folder: Path, path: Path, store: Store = as_f32, **more: Any) -> Path:
    """Write a checkpoint's tensors and what its config says as a GGUF file; `more` metadata with dots as "__"."""
    config = json.loads((folder / "config.json").read_text("utf-8"))
    kind = config["model_type"]
    tensors: dict[str, Stored] = {}
    experts: dict[str, list[NDArray[np.float32]]] = {}
    for name, values in sorted(load_file(folder / "model.safetensors").items(), key=_in_order):
        own, stack = _own_name(kind, name)
        if kind in _TURNED and own.split(".")[2:3] in (["attn_q"], ["attn_k"]):
            heads = config["num_attention_heads" if "attn_q" in own else "num_key_value_heads"]
            halves = values.reshape(heads, 2, -1, *values.shape[1:])
            values = halves.swapaxes(1, 2).reshape(values.shape)
        if kind in _RAISED and own.endswith("norm.weight"):
            values = values + np.float32(1)
        if stack:
            experts.setdefault(own, []).append(values)
        else:
            tensors[own] = store(own, values)
    tensors |= {own: store(own, np.stack(found)) for own, found in experts.items()}
    metadata = _metadata(config) | tokenizer_fields(folder)
    extra = {name.replace("__", "."): value for name, value in more.items()}
    for own in ("rope_freqs", "rope_factors_long", "rope_factors_short"):
        if own in extra:
            tensors[f"{own}.weight"] = as_f32(own, np.array(extra.pop(own), np.float32))
    return write_gguf(path, metadata | extra, tensors)


def _in_order(item: tuple[str, Any]) -> tuple[int | str, ...]:
    return tuple(f"{int(part):05}" if part.isdigit() else part for part in item[0].split("."))


def _own_name(kind: str, name: str) -> tuple[str, bool]:
    """What llama.cpp calls a tensor, and whether it is one of an expert's."""
    what, _, end = name.rpartition(".")
    if what in _ENDS:
        return f"{_ENDS[what]}.{end}", False
    _, _, block, what = what.split(".", 3)
    if ".experts." in what:
        return f"blk.{block}.{_EXPERT[what.rpartition('.')[2]]}.{end}", True
    own = {**_BLOCK, **(_SANDWICHED if kind in (*_RAISED[1:], "olmo2") else {})}[what]
    return f"blk.{block}.{own}.{end}", False


def _metadata(config: Mapping[str, Any]) -> dict[str, Any]:
    kind = config["model_type"]
    architecture = _ARCHITECTURES.get(kind, kind)
    head = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    rope = config.get("rope_parameters") or {}
    rope = rope.get("full_attention", rope)
    found = {ours: config[theirs] for theirs, ours in _FIELDS.items() if config.get(theirs) is not None}
    found |= {"attention.key_length": head, "attention.value_length": head}
    found["rope.dimension_count"] = int(head * rope.get("partial_rotary_factor", 1.0))
    found["rope.freq_base"] = float(rope["rope_theta"])
    return {"general.architecture": architecture} | {f"{architecture}.{key}": v for key, v in found.items()}


def tokenizer_fields(folder: Path) -> dict[str, Any]:
    """A folder's byte-level tokenizer as metadata."""
    tokenizer = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    added = {token["content"]: token["id"] for token in tokenizer["added_tokens"]}
    vocabulary = {**tokenizer["model"]["vocab"], **added}
    tokens: Sequence[str] = sorted(vocabulary, key=vocabulary.__getitem__)
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in tokenizer["model"]["merges"]]
    found: dict[str, Any] = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3 if token in added else 1 for token in tokens],
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.bos_token_id": 257,
        "tokenizer.ggml.eos_token_id": 258,
    }
    return found
