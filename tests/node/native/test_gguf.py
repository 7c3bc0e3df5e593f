"""A model from a GGUF file is the model that was converted to it: the same logits, of every architecture."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from node.compute.call import run_alone
from node.native.checkpoint import NativeCheckpoint
from node.native.engine import NativeEngine
from node.native.gguf.architectures import ARCHITECTURES
from node.native.kernel import Kernel
from node.native.precision import F32, Precision
from protocol.candidates import Candidates, Want
from protocol.model import Span
from protocol.tensors import from_numpy
from tests.node.native.test_families import VARIANTS as FAMILY_VARIANTS
from tests.node.native.test_families import rope
from tests.support.gguf import convert
from tests.support.models import make_model

HEADS = {"num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 128}
SHORT, LONG = [1 + i / 20 for i in range(16)], [2.0 + i for i in range(16)]
# Divisors of llama 3's frequencies, by the formula as it was published.
WAVES = 2 * np.pi * 10_000.0 ** (np.arange(16) / 16)
SMOOTH = (64 / WAVES - 1) / 3
LLAMA3 = np.where(WAVES < 16, 1, np.where(WAVES > 64, 8, 1 / ((1 - SMOOTH) / 8 + SMOOTH)))


# The family, what is changed in its config, and metadata that does not follow from that.
VARIANTS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "llama": ("llama", {"num_attention_heads": 4, "num_key_value_heads": 2}, {}),
    "llama, biases": ("llama", {"attention_bias": True, "mlp_bias": True}, {}),
    "llama, llama3": (
        "llama",
        FAMILY_VARIANTS["llama, llama3"][1],
        {"rope_freqs": LLAMA3, "llama__rope__scaling__original_context_length": 64},
    ),
    "mixtral": ("mixtral", {"num_local_experts": 5}, {}),
    "smollm3": ("smollm3", {"tie_word_embeddings": True}, {}),
    "granite": ("granite", {"attention_multiplier": 0.3}, {}),
    "qwen2": ("qwen2", {}, {}),
    "qwen2, yarn": (
        "qwen2",
        rope("yarn", factor=8.0, original_max_position_embeddings=64),
        {
            "qwen2__rope__scaling__type": "yarn",
            "qwen2__rope__scaling__factor": 8.0,
            "qwen2__rope__scaling__original_context_length": 64,
        },
    ),
    "qwen3": ("qwen3", {"head_dim": 32}, {}),
    "qwen3_moe": (
        "qwen3_moe",
        {"num_experts": 6, "moe_intermediate_size": 64, "norm_topk_prob": True, "head_dim": 32},
        {},
    ),
    "phi3": ("phi3", {"sliding_window": 7}, {}),
    "phi3, no window": ("phi3", {"sliding_window": None}, {"phi3__attention__sliding_window": 0}),
    "phi3, part turns": ("phi3", rope("default", partial_rotary_factor=0.5), {}),
    "phi3, longrope": (
        "phi3",
        {
            "original_max_position_embeddings": 64,
            **rope("longrope", short_factor=SHORT, long_factor=LONG),
        },
        {"rope_factors_short": SHORT, "rope_factors_long": LONG},
    ),
    "gemma": ("gemma", {"head_dim": 32, "tie_word_embeddings": True}, {}),
    "gemma2": ("gemma2", {"head_dim": 32, "query_pre_attn_scalar": 32, "attn_logit_softcapping": 2.0}, {}),
    "gemma3_text": ("gemma3_text", {"head_dim": 32, "query_pre_attn_scalar": 32}, {}),
    "gemma3_text, windows": (
        "gemma3_text",
        {
            "head_dim": 32,
            "query_pre_attn_scalar": 32,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
        },
        {"gemma3__attention__sliding_window_pattern": 2},
    ),
    "gemma3_text, windows one by one": (
        "gemma3_text",
        {
            "head_dim": 32,
            "query_pre_attn_scalar": 32,
            "layer_types": ["full_attention", "sliding_attention", "sliding_attention", "full_attention"],
        },
        {"gemma3__attention__sliding_window_pattern": [0, 1, 1, 0]},
    ),
    "olmo2": ("olmo2", {}, {}),
    "glm4": ("glm4", {"head_dim": 32, "attention_bias": True}, {}),
    "starcoder2": ("starcoder2", {"tie_word_embeddings": True}, {}),
    "stablelm": ("stablelm", {"use_qkv_bias": True}, {"stablelm__use_parallel_residual": True}),
    "stablelm, side by side": ("stablelm", {"use_parallel_residual": True}, {}),
}
Make = Callable[[str], tuple[Path, Path]]


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """A variant as a folder and as a GGUF file, written once."""
    made: dict[str, tuple[Path, Path]] = {}

    def both(name: str) -> tuple[Path, Path]:
        if name not in made:
            family, changed, more = VARIANTS[name]
            path = tmp_path_factory.mktemp("gguf")
            folder = make_model(family, path / "folder", seed=3, **{**HEADS, **changed})
            made[name] = folder, convert(folder, path / "model.gguf", **more)
        return made[name]

    return both


def logits(model: Path, kernel: Kernel, precision: Precision = F32) -> NDArray[np.float32]:
    """Of 30 positions."""
    checkpoint = NativeCheckpoint.open(str(model), precision)
    whole = Span(0, checkpoint.manifest.stages)
    engine = NativeEngine.load(checkpoint, whole, kernel)
    ids = from_numpy(np.arange(1, 31, dtype=np.int32) * 5 % 260)
    found = run_alone(engine, engine.new_cache(whole, 30), 0, ids, Want(top=0, every=True))
    assert isinstance(found, Candidates)
    return np.take_along_axis(found.logits, np.argsort(found.ids, axis=1), 1)


def test_every_architecture_is_tried() -> None:
    """The table of architectures and the variants here."""
    known = {architecture.model_type for architecture in ARCHITECTURES.values()}
    assert {family for family, _, _ in VARIANTS.values()} == known | {"mixtral"}


@pytest.mark.parametrize("name", VARIANTS)
def test_the_model_is_the_one_that_was_converted(name: str, make: Make, kernel: Kernel) -> None:
    """Rows in pairs, norms with one added, experts in stacks and divisors of frequencies are what they were."""
    folder, file = make(name)
    assert np.allclose(logits(file, kernel), logits(folder, kernel), rtol=1e-4, atol=1e-4)
    stages = Span(0, 6)
    opened = [NativeCheckpoint.open(str(path), F32) for path in (folder, file)]
    assert opened[0].manifest.tensors == opened[1].manifest.tensors
    assert all(opened[1].has(stage) for stage in stages)
