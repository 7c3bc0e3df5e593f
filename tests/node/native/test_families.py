"""Every family that the native path takes is transformers' model, and what it does not know completely it leaves."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from transformers import AutoModelForCausalLM

from node.compute.call import run_alone
from node.engine.checkpoint import Checkpoint
from node.native.checkpoint import NativeCheckpoint
from node.native.engine import NativeEngine
from node.native.families import FAMILIES
from node.native.family import plan_model
from node.native.kernel import Kernel
from node.native.precision import ARITHMETIC, BF16, F32, INT4, INT8, Precision
from protocol.candidates import Candidates, Want
from protocol.errors import BadCheckpoint, Malformed, UnsupportedModel
from protocol.model import Span
from protocol.tensors import from_numpy
from tests.support.models import make_model

# Heads of the kernels have multiples of 32 numbers.
HEADS = {"num_attention_heads": 2, "num_key_value_heads": 1}


def rope(kind: str, **more: Any) -> dict[str, Any]:
    """rope_parameters of this kind."""
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10_000.0, **more}}


EXPERTS = {
    "num_experts": 6,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 64,
    "norm_topk_prob": True,
}
ROUTED = {
    "n_routed_experts": 6,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 32,
    "n_shared_experts": 2,
    "routed_scaling_factor": 1.5,
    "attention_bias": True,
}
LATENT = {
    "num_attention_heads": 3,
    "num_key_value_heads": 3,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 24,
    "qk_rope_head_dim": 8,
    "v_head_dim": 40,
}
# Of the experts of deepseek_v3, and of what it has in common with others.
LATENT_ROUTED = {
    **LATENT,
    "q_lora_rank": 64,
    "n_routed_experts": 8,
    "n_shared_experts": 1,
    "num_experts_per_tok": 3,
    "n_group": 4,
    "topk_group": 2,
    "moe_intermediate_size": 32,
    "first_k_dense_replace": 1,
    "routed_scaling_factor": 2.5,
}
FOUR_HEADS = {"num_attention_heads": 4, "num_key_value_heads": 4}
YARN = {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 64}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama, biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama, linear": ("llama", rope("linear", factor=4.0)),
    "llama, llama3": (
        "llama",
        rope(
            "llama3",
            factor=8.0,
            low_freq_factor=1.0,
            high_freq_factor=4.0,
            original_max_position_embeddings=64,
        ),
    ),
    "llama, yarn": ("llama", rope("yarn", factor=8.0, original_max_position_embeddings=64)),
    "mistral": ("mistral", {}),
    "qwen2": ("qwen2", {}),
    "qwen2, windows": ("qwen2", {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 2}),
    "qwen3": ("qwen3", {"head_dim": 32}),
    "smollm3": ("smollm3", {}),
    "granite": ("granite", {"attention_multiplier": 0.3}),
    "phi3": ("phi3", {"sliding_window": 7}),
    "phi3, longrope": (
        "phi3",
        {
            "original_max_position_embeddings": 64,
            **rope(
                "longrope",
                short_factor=[1 + i / 20 for i in range(16)],
                long_factor=[2.0 + i for i in range(16)],
            ),
        },
    ),
    "phi3, part turns": ("phi3", rope("default", partial_rotary_factor=0.5)),
    "olmo2": ("olmo2", {}),
    "gemma3_text": ("gemma3_text", {"head_dim": 32}),
    "llama, small heads": ("llama", {"head_dim": 20, "attention_bias": True}),
    "ministral": ("ministral", {"head_dim": 32, "sliding_window": 6}),
    "gemma": ("gemma", {"head_dim": 32}),
    "gemma2": ("gemma2", {"head_dim": 32, "query_pre_attn_scalar": 20, "attn_logit_softcapping": 2.0}),
    "vaultgemma": ("vaultgemma", {"head_dim": 32, "final_logit_softcapping": None, "sliding_window": 7}),
    "glm": ("glm", {"head_dim": 32}),
    "glm4": ("glm4", {"head_dim": 24}),
    "olmo": ("olmo", {"clip_qkv": 0.8}),
    "olmo3": ("olmo3", {"sliding_window": 6}),
    "olmo3, yarn": ("olmo3", {"sliding_window": 6, "rope_scaling": YARN}),
    "seed_oss": ("seed_oss", {"head_dim": 32, "attention_out_bias": True, "mlp_bias": True}),
    "ernie4_5": ("ernie4_5", {"head_dim": 32, "use_bias": True}),
    "exaone4": ("exaone4", {"sliding_window": 6}),
    "exaone4, no windows": ("exaone4", {"sliding_window": None, "layer_types": ["full_attention"] * 4}),
    "helium": ("helium", {"head_dim": 32}),
    "hunyuan_v1_dense": ("hunyuan_v1_dense", {"head_dim": 32}),
    "hunyuan_v1_dense, alpha": (
        "hunyuan_v1_dense",
        {"head_dim": 32, **rope("dynamic", alpha=1000.0, factor=1.0)},
    ),
    "arcee": ("arcee", {}),
    "nemotron": ("nemotron", {"mlp_bias": True}),
    "starcoder2": ("starcoder2", {"sliding_window": 6}),
    "stablelm": ("stablelm", {"use_qkv_bias": True}),
    "stablelm, side by side": ("stablelm", {"use_parallel_residual": True}),
    "cohere": ("cohere", {}),
    "mixtral": ("mixtral", {"num_local_experts": 5}),
    "qwen2_moe": (
        "qwen2_moe",
        {**EXPERTS, "shared_expert_intermediate_size": 96, "mlp_only_layers": [1], "norm_topk_prob": False},
    ),
    "qwen3_moe": ("qwen3_moe", {**EXPERTS, "head_dim": 32, "decoder_sparse_step": 2}),
    "olmoe": ("olmoe", {"num_experts": 6, "num_experts_per_tok": 2, "clip_qkv": 0.9}),
    "granitemoe": ("granitemoe", {"num_local_experts": 5, "attention_multiplier": 0.3}),
    "granitemoeshared": ("granitemoeshared", {"num_local_experts": 5, "shared_intermediate_size": 96}),
    "glm4_moe": ("glm4_moe", ROUTED),
    "glm4_moe, norms, shares as they are": (
        "glm4_moe",
        {**ROUTED, "head_dim": 32, "use_qk_norm": True, "norm_topk_prob": False, "first_k_dense_replace": 0},
    ),
    "deepseek_v3": ("deepseek_v3", LATENT_ROUTED),
    "deepseek_v3, yarn, biases, shares as they are": (
        "deepseek_v3",
        {
            **LATENT_ROUTED,
            "rms_norm_eps": 1e-3,
            "attention_bias": True,
            "norm_topk_prob": False,
            "qk_rope_head_dim": 32,
            "v_head_dim": 32,
            **rope(
                "yarn",
                factor=40.0,
                original_max_position_embeddings=64,
                mscale=1.0,
                mscale_all_dim=0.8,
                beta_fast=32,
                beta_slow=1,
            ),
        },
    ),
    "deepseek_v3, halves turn, queries of the states": (
        "deepseek_v3",
        {**LATENT_ROUTED, "rope_interleave": False, "q_lora_rank": None, "attention_bias": True},
    ),
    "deepseek_v2": (
        "deepseek_v2",
        {
            **LATENT_ROUTED,
            **FOUR_HEADS,
            "topk_method": "group_limited_greedy",
            "routed_scaling_factor": 16.0,
        },
    ),
    "deepseek_v2, yarn, queries of the states": (
        "deepseek_v2",
        {
            **LATENT_ROUTED,
            **FOUR_HEADS,
            "topk_method": "greedy",
            "q_lora_rank": None,
            "mlp_bias": True,
            **rope(
                "yarn",
                factor=40.0,
                original_max_position_embeddings=64,
                mscale=0.707,
                mscale_all_dim=0.707,
            ),
        },
    ),
    "glm4_moe_lite": (
        "glm4_moe_lite",
        {**LATENT_ROUTED, "num_hidden_layers": 4, "mlp_layer_types": ["dense", "sparse", "dense", "sparse"]},
    ),
    "minicpm3": (
        "minicpm3",
        {
            **LATENT,
            "hidden_size": 96,
            "q_lora_rank": 64,
            "dim_model_base": 40,
            "rope_scaling": {
                "type": "longrope",
                "short_factor": [1.0, 1.1, 1.3, 1.8],
                "long_factor": [2.0, 2.0, 3.0, 4.0],
                "original_max_position_embeddings": 256,
            },
        },
    ),
    "youtu": ("youtu", {**LATENT, "q_lora_rank": 32}),
    "gpt_oss": ("gpt_oss", {"head_dim": 32, "num_local_experts": 5, "num_experts_per_tok": 2}),
    "cohere2": ("cohere2", {"sliding_window": 6, "logit_scale": 0.3}),
}
TOKENS = 40

Make = Callable[[str], Path]


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """The folder of a variant, written once."""
    made: dict[str, Path] = {}

    def folder(name: str) -> Path:
        if name not in made:
            family, changed = VARIANTS[name]
            path = tmp_path_factory.mktemp("family")
            made[name] = make_model(family, path, seed=3, **{**HEADS, **changed})
        return made[name]

    return folder


def test_every_family_is_tried() -> None:
    """The table of the native path and the variants here."""
    assert {family for family, _ in VARIANTS.values()} == set(FAMILIES)


@pytest.mark.parametrize("name", VARIANTS)
def test_logits_are_those_of_transformers(name: str, make: Make, kernel: Kernel) -> None:
    """In f32, for a prompt in two steps; what is left is the order of sums."""
    folder = make(name)
    checkpoint = NativeCheckpoint.open(str(folder), F32)
    whole = Span(0, checkpoint.manifest.stages)
    engine = NativeEngine.load(checkpoint, whole, kernel)
    ids = np.arange(1, 1 + TOKENS, dtype=np.int32) * 5 % 260
    cache, found = engine.new_cache(whole, TOKENS), []
    for some in (ids[:23], ids[23:]):
        out = run_alone(engine, cache, cache.length, from_numpy(some), Want(top=0, every=True))
        assert isinstance(out, Candidates)
        found.append(np.take_along_axis(out.logits, np.argsort(out.ids, axis=1), 1))
    with torch.inference_mode():
        model = AutoModelForCausalLM.from_pretrained(folder).eval()
        expected = model(torch.from_numpy(ids.astype(np.int64))[None]).logits[0].numpy()
    logits = np.concatenate(found)
    assert np.abs(logits - expected).max() < 1e-5 * np.abs(expected).max()
    assert np.array_equal(logits.argmax(1), expected.argmax(1))


def test_a_model_that_turns_by_the_whole_length_is_served_below_that(make: Make, kernel: Kernel) -> None:
    """A longer sequence is refused like one beyond the context: what was computed of it would no longer hold."""
    checkpoint = NativeCheckpoint.open(str(make("phi3, longrope")), F32)
    engine = NativeEngine.load(checkpoint, Span(0, 2), kernel)
    assert (checkpoint.manifest.context, engine.manifest.context) == (512, 64)
    cache = engine.new_cache(engine.span)
    run_alone(engine, cache, 0, from_numpy(np.arange(64, dtype=np.int32)), Want())
    with pytest.raises(Malformed, match="context is 64"):
        run_alone(engine, cache, 64, from_numpy(np.arange(1, dtype=np.int32)), Want())


@pytest.mark.parametrize("name", VARIANTS)
def test_it_is_the_same_model_in_the_swarm(name: str, make: Make) -> None:
    """Opened without transformers, a checkpoint has the same digests, and the same room is made for its files."""
    native, other = NativeCheckpoint.open(str(make(name)), F32), Checkpoint.open(str(make(name)))
    assert native.manifest == other.manifest
    whole = Span(0, native.manifest.stages)
    assert native.stage_digests(whole) == other.stage_digests(whole)
    assert all(native.has(stage) for stage in whole)


@pytest.mark.parametrize("precision", [BF16, INT8, INT4], ids=lambda precision: precision.name)
def test_precisions_have_the_weights_in_common(precision: Precision, make: Make) -> None:
    """Which weights and how they are computed with are two questions: the digests are those of what is stored."""
    stored, packed = (NativeCheckpoint.open(str(make("llama")), kept) for kept in (F32, precision))
    whole = Span(0, stored.manifest.stages)
    assert stored.stage_digests(whole) == packed.stage_digests(whole)
    assert stored.manifest == packed.manifest
    assert str(packed.precision.numerics) == f"{precision.name}/{ARITHMETIC}"


def config_of(folder: Path) -> dict[str, Any]:
    """Its config.json."""
    config: dict[str, Any] = json.loads((folder / "config.json").read_text("utf-8"))
    return config


@pytest.mark.parametrize("name", VARIANTS)
def test_a_field_that_nobody_knows_sends_the_model_elsewhere(name: str, make: Make) -> None:
    """And the field is named."""
    config = config_of(make(name))
    plan_model(config)
    with pytest.raises(UnsupportedModel, match="new_trick, which the native kernels do not know"):
        plan_model({**config, "new_trick": 1})


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"model_type": "mamba"}, "'mamba'"),
        ({"model_type": ["llama"]}, "not known"),
        ({"hidden_act": "relu"}, "relu"),
        ({"hidden_size": 72}, "hidden_size 72"),
        ({"hidden_size": True}, "hidden_size True"),
        ({"hidden_size": 1 << 40}, "hidden_size"),
        ({"num_key_value_heads": 3, "num_attention_heads": 4}, "evenly"),
        ({"num_hidden_layers": 0}, "num_hidden_layers 0"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps"),
        ({"pretraining_tp": 2}, "pretraining_tp 2"),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, "dynamic"),
        ({"rope_parameters": {"rope_theta": 0.5}}, "rotation"),
        ({"rope_parameters": {"rope_theta": 1e4, "surprise": 1}}, "surprise"),
        ({"rope_parameters": [1]}, "another form"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings"),
    ],
)
def test_a_value_that_is_not_known_is_named(changed: dict[str, Any], reason: str, make: Make) -> None:
    """Nothing is guessed."""
    with pytest.raises(UnsupportedModel, match=reason):
        plan_model({**config_of(make("llama")), **changed})


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"num_local_experts": 4}, "two numbers of experts, 4 and 6"),
        ({"num_experts": 1000}, "num_experts 1000"),
        ({"num_experts_per_tok": 7}, "num_experts_per_tok 7"),
        ({"moe_intermediate_size": 40}, "experts of 40"),
        ({"mlp_only_layers": [True]}, "mlp_only_layers"),
        ({"use_sliding_window": True}, "use_sliding_window True"),
        ({"layer_types": ["sliding_attention"] * 4}, "layer_types"),
    ],
)
def test_experts_that_are_not_known_are_named(changed: dict[str, Any], reason: str, make: Make) -> None:
    """Counts that the kernels cannot take, blocks that are not said as they should be."""
    with pytest.raises(UnsupportedModel, match=reason):
        plan_model({**config_of(make("qwen2_moe")), **changed})


@pytest.mark.parametrize(
    ("name", "changed", "reason"),
    [
        ("glm4_moe", {"n_group": 4}, "3 of 6 experts in 1 of 4 groups"),
        ("glm4_moe", {"n_group": 3}, "3 of 6 experts in 1 of 3 groups"),
        ("deepseek_v3", {"kv_lora_rank": 24}, "kv_lora_rank 24"),
        ("deepseek_v3", {"q_lora_rank": 40}, "q_lora_rank 40"),
        ("deepseek_v3", {"n_group": None}, "no n_group"),
        ("deepseek_v3", {"num_key_value_heads": 1}, "num_key_value_heads 1"),
        ("deepseek_v3", {"moe_layer_freq": 2}, "moe_layer_freq 2"),
        ("deepseek_v3", {"scoring_func": "softmax"}, "scoring_func 'softmax'"),
        ("deepseek_v3", {"head_dim": 24}, "head_dim 24"),
        ("minicpm3", {"scale_depth": None}, "no scale_depth"),
        ("deepseek_v2", {"topk_method": "noaux_tc"}, "topk_method 'noaux_tc'"),
        ("deepseek_v2", {"norm_topk_prob": True}, "norm_topk_prob True"),
        ("glm4_moe_lite", {"mlp_layer_types": ["dense"]}, "mlp_layer_types"),
        ("glm4_moe", {"first_k_dense_replace": 5}, "first_k_dense_replace 5"),
        ("glm4_moe", {"routed_scaling_factor": 0.0}, "routed_scaling_factor 0"),
        ("gpt_oss", {"swiglu_limit": 6.0}, "swiglu_limit 6"),
        ("llama", {"quantization_config": {"quant_method": "mxfp4"}}, "quantization_config"),
        ("gemma2", {"attn_logit_softcapping": -1.0}, "attn_logit_softcapping -1"),
        ("gemma2", {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        ("cohere", {"use_qk_norm": True}, "use_qk_norm"),
        ("cohere", {"logit_scale": 0.0}, "logit_scale 0"),
        ("stablelm", {"qk_layernorm": True}, "qk_layernorm"),
        ("exaone4", {"layer_types": None, "sliding_window_pattern": "LLLG"}, "LLLG"),
        ("qwen3", {"head_dim": 40}, "heads are normed"),
        ("olmo3", {"rope_parameters": {"full_attention": 3}}, "another form"),
        ("glm", {"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.55}}, "rotation of"),
    ],
)
def test_what_a_family_has_not_is_named(name: str, changed: dict[str, Any], reason: str, make: Make) -> None:
    """Of each, something that its configuration could say and that is computed nowhere."""
    with pytest.raises(UnsupportedModel, match=reason):
        plan_model({**config_of(make(name)), **changed})


def test_a_tensor_that_nobody_knows_sends_the_model_elsewhere(make: Make, tmp_path: Path) -> None:
    """Here the query norms of a qwen3 that calls itself a llama."""
    folder = Path(shutil.copytree(make("qwen3"), tmp_path / "copy"))
    config = {**config_of(make("llama")), "head_dim": 32}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnsupportedModel, match=r"tensor model\.layers\.0\.self_attn\.k_norm\.weight"):
        NativeCheckpoint.open(str(folder), F32)


def test_a_block_that_is_there_to_guess_ahead_is_left(make: Make, tmp_path: Path) -> None:
    """Where models have one; elsewhere the same tensor is one that nobody knows."""
    for name in ("glm4_moe", "llama"):
        folder = Path(shutil.copytree(make(name), tmp_path / name))
        tensors = load_file(folder / "model.safetensors")
        save_file(
            {**tensors, "model.layers.4.eh_proj.weight": np.ones((4, 4), np.float32)},
            folder / "model.safetensors",
            {"format": "pt"},
        )
    checkpoint = NativeCheckpoint.open(str(tmp_path / "glm4_moe"), F32)
    checkpoint.require(Span(0, checkpoint.manifest.stages))
    with pytest.raises(UnsupportedModel, match=r"tensor model\.layers\.4\.eh_proj\.weight"):
        NativeCheckpoint.open(str(tmp_path / "llama"), F32)


@pytest.mark.parametrize("precision", [F32, INT4], ids=lambda precision: precision.name)
@pytest.mark.parametrize(
    "name",
    [
        "model.embed_tokens.weight",
        "model.layers.1.self_attn.k_proj.weight",
        "model.layers.1.self_attn.k_proj.bias",
        "model.layers.1.post_attention_layernorm.weight",
        "model.layers.2.mlp.experts.3.up_proj.weight",
        "model.layers.2.mlp.gate.weight",
        "model.norm.weight",
        "lm_head.weight",
    ],
)
def test_a_tensor_that_is_not_finite_is_named(
    name: str, precision: Precision, make: Make, tmp_path: Path, kernel: Kernel
) -> None:
    """In one line, whatever it is and however it is kept."""
    folder = Path(shutil.copytree(make("qwen2_moe"), tmp_path / "copy"))
    tensors = load_file(folder / "model.safetensors")
    tensors[name] = tensors[name].copy()
    tensors[name].flat[-3] = np.nan if precision is F32 else -np.inf
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    checkpoint = NativeCheckpoint.open(str(folder), precision)
    with pytest.raises(BadCheckpoint) as failure:
        NativeEngine.load(checkpoint, Span(0, checkpoint.manifest.stages), kernel)
    assert str(failure.value) == f"{name} holds NaN or infinite values"


def test_a_weight_that_no_scale_reaches_is_named(make: Make, tmp_path: Path, kernel: Kernel) -> None:
    """In the precision that cannot hold it, no other."""
    folder = Path(shutil.copytree(make("llama"), tmp_path / "copy"))
    name = "model.layers.0.mlp.down_proj.weight"
    tensors = load_file(folder / "model.safetensors")
    tensors[name] = tensors[name] * np.float32(1e8)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    NativeEngine.load(NativeCheckpoint.open(str(folder), F32), Span(1, 2), kernel)
    with pytest.raises(BadCheckpoint, match=rf"{name}: .*too large for int8"):
        NativeEngine.load(NativeCheckpoint.open(str(folder), INT8), Span(1, 2), kernel)


def test_shapes_that_config_does_not_say_are_refused(make: Make, tmp_path: Path) -> None:
    """Before a kernel reads beyond them."""
    folder = Path(shutil.copytree(make("llama"), tmp_path / "copy"))
    config = config_of(folder)
    (folder / "config.json").write_text(json.dumps({**config, "intermediate_size": 256}))
    checkpoint = NativeCheckpoint.open(str(folder), F32)
    with pytest.raises(BadCheckpoint, match="do not belong together"):
        checkpoint.require(Span(1, 2))
    (folder / "config.json").write_text("[]")
    with pytest.raises(BadCheckpoint, match=r"config\.json"):
        NativeCheckpoint.open(str(folder), F32)
