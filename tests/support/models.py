"""Tiny random checkpoints of many families, with a byte-level tokenizer, for tests to load as users load them.

They are written the way published checkpoints are (`save_pretrained`), so that everything from the index to
the names of expert tensors is as on the hub. Every parameter is perturbed, norms and biases too, so that a
tensor that is not loaded or a step that is left out shows; weights are scaled so that logits lie far apart.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

HIDDEN = 64
SPECIAL_TOKENS = ("<pad>", "<bos>", "<eos>", "<|user|>", "<|assistant|>", "<|end|>", "<|x|>", "<|y|>")
VOCABULARY = 256 + len(SPECIAL_TOKENS)
BOS, EOS = 257, 258
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "<|{{ message.role }}|>{{ message.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)

_BASE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "pad_token_id": 256,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
    "tie_word_embeddings": False,
}
_EXPERTS: dict[str, Any] = {"moe_intermediate_size": 48, "num_experts": 4, "num_experts_per_tok": 2}
# What differs from _BASE. Sliding windows are shorter than the prompts of the tests.
_FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": 6},
    "qwen2": {"tie_word_embeddings": True},
    "qwen3": {"head_dim": 24},
    "gemma2": {"head_dim": 16, "sliding_window": 6, "tie_word_embeddings": True},
    "gemma3_text": {"head_dim": 16, "sliding_window": 6, "tie_word_embeddings": True},
    "phi3": {},
    "mixtral": {"num_local_experts": 4, "sliding_window": None},
    "qwen3_moe": {"head_dim": 16, **_EXPERTS},
    "deepseek_v3": {
        "num_key_value_heads": 4,
        "first_k_dense_replace": 1,
        "n_routed_experts": 4,
        "n_shared_experts": 1,
        "num_experts_per_tok": 2,
        "n_group": 2,
        "topk_group": 1,
        "moe_intermediate_size": 32,
        "q_lora_rank": 32,
        "kv_lora_rank": 32,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 16,
        "v_head_dim": 16,
    },
    "opt": {"ffn_dim": 128, "word_embed_proj_dim": HIDDEN, "tie_word_embeddings": True},
    "gptj": {"rotary_dim": 8},
    "gpt2": {"tie_word_embeddings": True},
    "gpt_neox": {},
    "falcon": {"tie_word_embeddings": True, "new_decoder_architecture": False},
    "bloom": {"tie_word_embeddings": True},
    "granite": {"embedding_multiplier": 3.0, "logits_scaling": 2.0, "residual_multiplier": 0.5},
    "cohere": {"logit_scale": 0.25, "tie_word_embeddings": True},
    "gpt_oss": {"head_dim": 16, "num_local_experts": 4, "sliding_window": 6},
    "olmo2": {},
    "qwen3_next": {
        "head_dim": 16,
        "shared_expert_intermediate_size": 48,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 2,
        "linear_key_head_dim": 16,
        "linear_value_head_dim": 16,
        "full_attention_interval": 2,
        **_EXPERTS,
    },
    "mamba": {"state_size": 8},
}
FAMILIES = tuple(_FAMILIES)


def tiny_config(family: str, *, layers: int = 4, **overrides: Any) -> Any:
    """The transformers configuration of a tiny model of the family, one of FAMILIES or any other that fits."""
    fields = {**_BASE, "num_hidden_layers": layers, **_FAMILIES.get(family, {}), **overrides}
    return AutoConfig.for_model(family, **fields)


def random_model(config: Any, *, seed: int) -> PreTrainedModel:
    """An fp32 model with seeded random weights, in evaluation mode."""
    torch.manual_seed(seed)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = torch.randn(weight.shape, generator=generator)
            if weight.dim() < 2 or "A_log" in name:
                weight.add_(noise, alpha=0.1)
            elif "embed" in name or "wte" in name:
                weight.copy_(noise)
            else:
                weight.copy_(noise / math.sqrt(weight.shape[-1]))
                if "lm_head" in name or "embed_out" in name:
                    weight.mul_(4.0)
    model.eval()
    return model


def make_model(
    family: str,
    folder: Path,
    *,
    seed: int,
    layers: int = 4,
    sharded: bool = False,
    shard_size: str = "100KB",
    **overrides: Any,
) -> Path:
    """Writes a tiny random fp32 checkpoint of the family with a tokenizer; returns the folder.

    `sharded` spreads the weights over several safetensors files of `shard_size` with an index. `overrides`
    replace fields of the configuration.
    """
    model = random_model(tiny_config(family, layers=layers, **overrides), seed=seed)
    model.save_pretrained(folder, max_shard_size=shard_size if sharded else "1GB")
    write_tokenizer(folder)
    return folder


def write_tokenizer(folder: Path) -> None:
    """A tokenizer of single bytes: token b is byte b of the UTF-8 text, special tokens follow from 256 on."""
    # GPT-2's table of printable stand-ins for bytes, in the order of the bytes.
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [byte for byte in range(256) if byte not in printable]
    letters = {byte: chr(byte) for byte in printable} | {byte: chr(256 + n) for n, byte in enumerate(rest)}
    tokenizer = Tokenizer(models.BPE(vocab={letters[byte]: byte for byte in range(256)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>"}
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 512, **names}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2))
    (folder / "special_tokens_map.json").write_text(json.dumps(names, indent=2))
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)
