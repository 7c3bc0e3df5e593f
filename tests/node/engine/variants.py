"""More families and variants of families, as changes to the tiny configuration of `tests.support.models`."""

from __future__ import annotations

from typing import Any

_EXPERTS: dict[str, Any] = {"moe_intermediate_size": 48, "num_experts": 4, "num_experts_per_tok": 2}
_ROUTED: dict[str, Any] = {
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 48,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
    "num_key_value_heads": 4,
}
_LATENT: dict[str, Any] = {
    **_ROUTED,
    "q_lora_rank": 24,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16,
    "v_head_dim": 16,
}
# The same as the kernels take it.
_RANKS: dict[str, Any] = {
    "q_lora_rank": 32,
    "kv_lora_rank": 32,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16,
    "v_head_dim": 16,
}
_LATENT_ROUTED: dict[str, Any] = {**_ROUTED, **_RANKS, "moe_intermediate_size": 32, "rms_norm_eps": 1e-5}
_YARN: dict[str, Any] = {
    "rope_type": "yarn",
    "rope_theta": 10_000.0,
    "factor": 8.0,
    "original_max_position_embeddings": 64,
    "mscale": 1.0,
    "mscale_all_dim": 0.8,
}
# Enough heads that no two tokens have the same score: with few all are often zero, and which is taken is open.
_INDEXED: dict[str, Any] = {**_LATENT, "index_topk": 4, "index_n_heads": 32, "index_head_dim": 16}
_DELTA: dict[str, Any] = {
    "head_dim": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "full_attention_interval": 2,
}
_LOCAL: dict[str, Any] = {"num_local_experts": 4, "num_experts_per_tok": 2}
_STATES: dict[str, Any] = {"mamba_n_heads": 8, "mamba_d_head": 16, "mamba_d_state": 8}
_WINDOW: dict[str, Any] = {"head_dim": 16, "sliding_window": 6}

# Name (a family, or a family and what is special about it) -> changes.
EXACT: dict[str, dict[str, Any]] = {
    "apertus": {},
    "arcee": {},
    "bamba": {**_STATES, "attn_layer_indices": [1, 3]},
    "bitnet": {},
    "codegen": {"rotary_dim": 8},
    "cohere2": {"sliding_window": 6},
    "ctrl": {"n_embd": 64, "dff": 128, "n_layer": 4, "n_head": 4},
    "deepseek_v2": _LATENT_ROUTED,
    "deepseek_v3/yarn": {**_LATENT_ROUTED, "q_lora_rank": None, "rope_parameters": _YARN},
    "deepseek_v32": _INDEXED,
    "diffllama": {},
    "doge": {},
    "dots1": _ROUTED,
    "ernie4_5": {"head_dim": 16},
    "ernie4_5_moe": {"moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": 48},
    "exaone4": {**_WINDOW, "sliding_window_pattern": 4},
    "falcon/alibi": {"alibi": True},
    "falcon/grouped": {"new_decoder_architecture": True, "num_kv_heads": 2},
    "falcon_h1": {"mamba_d_ssm": 64, **_STATES, "mamba_d_head": 8, "head_dim": 16},
    "flex_olmo": {"num_experts": 4, "num_experts_per_tok": 2},
    "gemma": {"head_dim": 16},
    "gemma3/multimodal": {
        "text_config": {
            "vocab_size": 264,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 4,
        }
        | {"num_attention_heads": 4, "num_key_value_heads": 2, **_WINDOW},
        "vision_config": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
        | {"num_attention_heads": 2, "image_size": 28, "patch_size": 14},
        "mm_tokens_per_image": 4,
    },
    "gemma4_text": {
        **_WINDOW,
        "global_head_dim": 16,
        "num_kv_shared_layers": 0,
        "hidden_size_per_layer_input": 0,
    },
    "glm": {"head_dim": 16},
    "glm4": {"head_dim": 16},
    "glm4_moe": {**_ROUTED, "head_dim": 16},
    "glm4_moe_lite": _LATENT_ROUTED,
    "glm_moe_dsa": _INDEXED,
    "gpt_bigcode": {},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]], "window_size": 4, "num_layers": 4},
    "granitemoe": {**_LOCAL, "embedding_multiplier": 3.0},
    "granitemoehybrid": {**_LOCAL, **_STATES, "layer_types": ["mamba", "attention", "mamba", "attention"]},
    "helium": {"head_dim": 16},
    "hunyuan_v1_dense": {"head_dim": 16},
    "hunyuan_v1_moe": {"num_experts": 4, "moe_topk": 2, "head_dim": 16},
    "jamba": {"num_experts": 2, "mamba_d_state": 8, "mamba_dt_rank": 8, "use_mamba_kernels": False}
    | {"attn_layer_period": 2, "attn_layer_offset": 1},
    "jetmoe": {},
    "lfm2": {"full_attn_idxs": [1, 3]},
    "llama4_text": {"intermediate_size_mlp": 128, "num_local_experts": 4, "head_dim": 16}
    | {"attention_chunk_size": 6, "no_rope_layers": [1, 1, 1, 0]},
    "mamba2": {"num_heads": 8, "head_dim": 16, "state_size": 8, "n_groups": 1, "expand": 2},
    "minimax_m2": {**_LOCAL, "head_dim": 16},
    "minicpm3": {**_RANKS, "num_key_value_heads": 4},
    "ministral": _WINDOW,
    "ministral3": {"head_dim": 16},
    "mpt": {"d_model": 64, "n_heads": 4, "n_layers": 4, "expansion_ratio": 2},
    "nemotron": {},
    "nemotron_h": {"hybrid_override_pattern": "M*-*", "mamba_num_heads": 8, "mamba_head_dim": 16}
    | {"ssm_state_size": 8, "n_groups": 1, "head_dim": 16},
    "olmo": {},
    "olmo3": {"sliding_window": 6},
    "olmo_hybrid": {},
    "olmoe": {"num_experts": 4, "num_experts_per_tok": 2},
    "opt/350m": {"ffn_dim": 128, "word_embed_proj_dim": 32, "do_layer_norm_before": False},
    "persimmon": {},
    "phi": {},
    "phimoe": {"num_local_experts": 4},
    "qwen2/window": {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 2},
    "qwen2_moe": {**_EXPERTS, "shared_expert_intermediate_size": 48},
    "qwen3_5_text": _DELTA,
    "seed_oss": {"head_dim": 16},
    "smollm3": {},
    "stablelm": {},
    "starcoder2": {},
    "vaultgemma": _WINDOW,
    "xglm": {"ffn_dim": 128},
    "youtu": {**_RANKS, "num_key_value_heads": 4},
}
# Families that choose the positions they attend to by scores of their own.
INDEXED = tuple(name for name, changes in EXACT.items() if changes is _INDEXED)

# Name -> (changes, a word of why the engine refuses it).
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "gemma3n_text": (
        {**_WINDOW, "laurel_rank": 8, "hidden_size_per_layer_input": 8, "num_kv_shared_layers": 0}
        | {"vocab_size_per_layer_input": 264},
        "layers take states of",
    ),
    "gemma4_text/embeddings_per_layer": (
        {**_WINDOW, "global_head_dim": 16, "num_kv_shared_layers": 0, "hidden_size_per_layer_input": 8}
        | {"vocab_size_per_layer_input": 264},
        "layers read more than hidden states",
    ),
    "openai-gpt": ({}, "keeps no cache"),
    "recurrent_gemma": (
        {
            "lru_width": 64,
            "attention_window_size": 6,
            "head_dim": 16,
            "block_types": ["recurrent", "attention"],
        },
        "share more than hidden states",
    ),
    "zamba2": (
        {"layers_block_type": ["mamba", "hybrid", "mamba", "hybrid"], "mamba_d_state": 8, "n_mamba_heads": 8}
        | {"use_mamba_kernels": False},
        "layers read more than hidden states",
    ),
}
