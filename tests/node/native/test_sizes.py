"""What a model is said to take by its configuration alone is what an engine takes that has loaded it, to the byte."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from node.estimate import estimate
from node.native.checkpoint import NativeCheckpoint
from node.native.engine import NativeEngine
from node.native.kernel import Kernel
from node.native.precision import F32, INT4, INT8
from protocol.model import Span
from tests.support.models import random_model, tiny_config

_EXPERTS = {"moe_intermediate_size": 64, "num_experts_per_tok": 2}
_LATENT = {
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "kv_lora_rank": 32,
    "q_lora_rank": 64,
    "qk_nope_head_dim": 24,
    "qk_rope_head_dim": 8,
    "v_head_dim": 40,
    "moe_intermediate_size": 32,
}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "padded heads": ("llama", {}),
    "biases": ("llama", {"head_dim": 32, "attention_bias": True, "mlp_bias": True}),
    "tied, biased queries": ("qwen2", {"head_dim": 32, "tie_word_embeddings": True}),
    "fused": ("phi3", {}),
    "norms of heads": ("gemma3_text", {"head_dim": 32, "sliding_window": 6}),
    "biased norms, no gates": ("starcoder2", {"use_bias": True}),
    "bare norms": ("olmo", {}),
    "experts": ("qwen3_moe", {"head_dim": 32, "num_experts": 6, **_EXPERTS}),
    "some experts": (
        "qwen3_moe",
        {"head_dim": 32, "num_experts": 6, "decoder_sparse_step": 2, **_EXPERTS},
    ),
    "first ones dense, shared experts": (
        "glm4_moe",
        {
            "head_dim": 32,
            "n_routed_experts": 6,
            "n_shared_experts": 2,
            "first_k_dense_replace": 1,
            "n_group": 1,
            "topk_group": 1,
            **_EXPERTS,
        },
    ),
    "latents, experts in groups": (
        "deepseek_v3",
        {
            **_LATENT,
            "attention_bias": True,
            "moe_intermediate_size": 64,
            "n_routed_experts": 4,
            "n_group": 2,
            "topk_group": 1,
        },
    ),
    "latents, queries of the states": (
        "deepseek_v3",
        {**_LATENT, "q_lora_rank": None, "attention_bias": True, "first_k_dense_replace": 3},
    ),
    "sinks, stacked experts": ("gpt_oss", {"head_dim": 32, "num_local_experts": 4, "num_experts_per_tok": 2}),
}


def agree(folder: Path, dtype: torch.dtype, kernel: Kernel, family: str, **fields: Any) -> None:
    """Write such a model; load every stage in every precision; compare."""
    model: Any = random_model(tiny_config(family, layers=3, **fields), seed=1)
    model.to(dtype).save_pretrained(folder)
    said = estimate(str(folder))
    assert said.engine == "native"
    assert said.own == ("bf16" if dtype is torch.bfloat16 else "f32")
    for name, precision in ((said.own, F32), ("int8", INT8), ("int4", INT4)):
        footprint = said.footprints[name]
        checkpoint = NativeCheckpoint.open(str(folder), precision)
        for stage, size in enumerate(footprint.stages):
            engine = NativeEngine.load(checkpoint, Span(stage, stage + 1), kernel)
            assert (name, stage, engine.weight_bytes) == (name, stage, size)
            assert checkpoint.stage_bytes(stage, "f32") == size
        whole = NativeEngine.load(checkpoint, Span(1, 4), kernel)
        assert whole.kv_bytes_per_token() == sum(footprint.kv)
    assert said.stored is not None
    files = folder.glob("*.safetensors")
    assert sum(said.stored) - said.shared == sum(_tensor_bytes(path) for path in files)


def _tensor_bytes(path: Path) -> int:
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return sum(
        given["data_offsets"][1] - given["data_offsets"][0] for given in header.values() if "dtype" in given
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_estimate_is_what_loading_takes(
    variant: str, dtype: torch.dtype, kernel: Kernel, tmp_path: Path
) -> None:
    """For everything that families differ in."""
    family, fields = VARIANTS[variant]
    agree(tmp_path, dtype, kernel, family, **fields)


@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
    hidden_size=st.integers(1, 4).map(lambda n: 32 * n),
    intermediate_size=st.integers(1, 4).map(lambda n: 32 * n),
    num_key_value_heads=st.integers(1, 2),
    share=st.sampled_from([1, 2, 4]),
    head_dim=st.integers(4, 40).map(lambda n: 2 * n),
    vocab_size=st.integers(260, 300),
    tied=st.booleans(),
)
def test_the_estimate_is_what_loading_takes_in_any_size(
    kernel: Kernel, dtype: torch.dtype, share: int, tied: bool, **fields: Any
) -> None:
    """Heads and vocabularies that have to be padded, too."""
    fields["num_attention_heads"] = share * fields["num_key_value_heads"]
    with TemporaryDirectory() as folder:
        agree(Path(folder), dtype, kernel, "llama", tie_word_embeddings=tied, **fields)


@settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    num_attention_heads=st.integers(1, 5),
    kv_lora_rank=st.integers(1, 3).map(lambda n: 32 * n),
    q_lora_rank=st.sampled_from([None, 32, 64]),
    qk_nope_head_dim=st.integers(1, 70),
    qk_rope_head_dim=st.integers(1, 20).map(lambda n: 2 * n),
    v_head_dim=st.integers(1, 70),
    attention_bias=st.booleans(),
)
def test_the_estimate_is_what_loading_takes_of_latents(
    kernel: Kernel, dtype: torch.dtype, num_attention_heads: int, **fields: Any
) -> None:
    """Every part of a head that has to be padded."""
    heads = {"num_attention_heads": num_attention_heads, "num_key_value_heads": num_attention_heads}
    with TemporaryDirectory() as folder:
        agree(Path(folder), dtype, kernel, "youtu", **heads, **fields)
