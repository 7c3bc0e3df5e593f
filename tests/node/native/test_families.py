"""Every family that the native path takes is transformers' model, and what it does not know completely it leaves."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from node.compute.call import run_alone
from node.engine.checkpoint import Checkpoint
from node.native.checkpoint import NativeCheckpoint
from node.native.engine import NativeEngine
from node.native.family import FAMILIES, plan_model
from node.native.kernel import Kernel
from node.native.precision import F32, INT4, INT8, Precision
from protocol.candidates import Candidates, Want
from protocol.errors import BadCheckpoint, UnsupportedModel
from protocol.model import Span
from protocol.tensors import from_numpy
from tests.support.models import make_model

# Heads of the kernels have multiples of 32 numbers.
HEADS = {"num_attention_heads": 2, "num_key_value_heads": 1}


def rope(kind: str, **more: float) -> dict[str, Any]:
    """rope_parameters of this kind."""
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10_000.0, **more}}


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
    "phi3, part turns": ("phi3", rope("default", partial_rotary_factor=0.5)),
    "olmo2": ("olmo2", {}),
    "gemma3_text": ("gemma3_text", {"head_dim": 32}),
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


@pytest.mark.parametrize("name", VARIANTS)
def test_it_is_the_same_model_in_the_swarm(name: str, make: Make) -> None:
    """Opened without transformers, a checkpoint has the same digests, and the same room is made for its files."""
    native, other = NativeCheckpoint.open(str(make(name)), F32), Checkpoint.open(str(make(name)))
    assert native.manifest == other.manifest
    whole = Span(0, native.manifest.stages)
    assert native.stage_digests(whole) == other.stage_digests(whole)
    assert all(native.has(stage) for stage in whole)


@pytest.mark.parametrize("precision", [INT8, INT4], ids=lambda precision: precision.name)
def test_fewer_bits_are_other_weights(precision: Precision, make: Make) -> None:
    """No client continues an answer of one on the other; the embedding is kept as it is, and so is its name."""
    stored, packed = (NativeCheckpoint.open(str(make("llama")), kept) for kept in (F32, precision))
    whole = Span(0, stored.manifest.stages)
    pairs = list(zip(stored.stage_digests(whole), packed.stage_digests(whole), strict=True))
    assert [one == other for one, other in pairs] == [True] + [False] * (len(pairs) - 1)
    assert stored.manifest == packed.manifest


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


def test_a_tensor_that_nobody_knows_sends_the_model_elsewhere(make: Make, tmp_path: Path) -> None:
    """Here the query norms of a qwen3 that calls itself a llama."""
    folder = Path(shutil.copytree(make("qwen3"), tmp_path / "copy"))
    config = {**config_of(make("llama")), "head_dim": 32}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnsupportedModel, match=r"tensor model\.layers\.0\.self_attn\.k_norm\.weight"):
        NativeCheckpoint.open(str(folder), F32)


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
