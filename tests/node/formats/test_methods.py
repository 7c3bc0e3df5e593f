"""Checkpoints in every form that is read say what the plain weights say that they stand for, by either engine."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from node.compute.call import run_alone
from node.compute.interfaces import Engine
from node.engine.checkpoint import Checkpoint
from node.engine.span import SpanEngine
from node.estimate import estimate
from node.native.checkpoint import NativeCheckpoint
from node.native.engine import NativeEngine
from node.native.kernel import Kernel
from node.native.load import load_kernel
from node.native.packed import Kind
from node.native.precision import F32, INT4, INT8, PRECISIONS
from node.native.weights import Loader
from protocol.candidates import Candidates, Want
from protocol.errors import BadCheckpoint
from protocol.model import Span
from protocol.tensors import from_numpy
from tests.node.native.test_quant import values
from tests.support.models import make_model
from tests.support.quantised import METHODS, quantise

PROMPT = np.array([11, 200, 3, 77, 77, 145, 90, 8, 31, 222, 64, 5], dtype=np.int32)
TOKENS = 8
WHOLE = Span(0, 4)
# Whose groups of four bits are ours, and of eight.
FOURS = (
    *("gptq", "gptq, zeros", "gptq, zeros, second version", "gptq, 2 bits"),
    *("awq", "packed, 4 bits", "packed, 4 bits, zeros"),
)
EIGHTS = (*FOURS, "gptq, 8 bits", "packed, 8 bits, head", "whole numbers", "bitsandbytes, 8 bits")
Make = Callable[[str], tuple[Path, Path]]


@pytest.fixture(scope="module")
def kernel() -> Kernel:
    """With one thread."""
    return load_kernel(1)


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """A model quantised, and what that stands for, written once: all sizes are multiples of every group."""
    sizes: dict[str, Any] = {
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
    folder = make_model("llama", tmp_path_factory.mktemp("llama") / "plain", seed=3, layers=2, **sizes)
    made: dict[str, tuple[Path, Path]] = {}

    def both(name: str) -> tuple[Path, Path]:
        if name not in made:
            made[name] = quantise(folder, tmp_path_factory.mktemp("quantised"), METHODS[name])
        return made[name]

    return both


def native(folder: Path, kernel: Kernel, span: Span = WHOLE) -> NativeEngine:
    """In full precision."""
    return NativeEngine.load(NativeCheckpoint.open(str(folder), F32), span, kernel)


def answer(engine: Engine) -> tuple[list[int], Any]:
    """Tokens, and all logits of the prompt by id."""
    cache = engine.new_cache(WHOLE)
    first = run_alone(engine, cache, 0, from_numpy(PROMPT), Want(top=0, every=True))
    assert isinstance(first, Candidates)
    logits = np.take_along_axis(first.logits, np.argsort(first.ids, axis=1), 1)
    found = [int(first.ids[-1, 0])]
    while len(found) < TOKENS:
        given = from_numpy(np.array(found[-1:], np.int32))
        out = run_alone(engine, cache, len(PROMPT) + len(found) - 1, given, Want(top=1))
        assert isinstance(out, Candidates)
        found.append(int(out.ids[0, 0]))
    return found, logits


@pytest.mark.parametrize("name", METHODS)
def test_tokens_are_those_of_the_plain_weights(name: str, make: Make, kernel: Kernel) -> None:
    """As transformers generates them from these, by the kernels and by torch."""
    quantised, plain = make(name)
    model: Any = AutoModelForCausalLM.from_pretrained(plain).eval()
    model.generation_config.eos_token_id = None
    ids = torch.from_numpy(PROMPT.astype(np.int64))[None]
    said = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=TOKENS)
    expected = said[0, len(PROMPT) :].tolist()
    tokens, logits = answer(native(quantised, kernel))
    assert tokens == expected
    assert np.allclose(logits, answer(native(plain, kernel))[1], rtol=1e-4, atol=1e-4)
    by_torch, other = answer(SpanEngine.load(Checkpoint.open(str(quantised)), WHOLE, dtype="f32"))
    assert by_torch == expected
    assert np.allclose(other, logits, rtol=1e-3, atol=1e-3)


LATENTS = {
    "q_lora_rank": 64,
    "kv_lora_rank": 64,
    "qk_nope_head_dim": 24,
    "v_head_dim": 32,
    "moe_intermediate_size": 64,
}


@pytest.mark.parametrize(
    ("family", "name", "more"),
    [
        ("deepseek_v3", "fp8, blocks", LATENTS),
        ("deepseek_v3", "packed, 4 bits", LATENTS),
        ("qwen3_moe", "gptq", {"head_dim": 32, "moe_intermediate_size": 64}),
        ("mixtral", "nf4", {}),
    ],
)
def test_experts_and_latents_are_quantised_too(
    family: str, name: str, more: dict[str, Any], tmp_path: Path, kernel: Kernel
) -> None:
    """As DeepSeek-V3 is published, and others with experts: by the kernels, by torch, as the plain weights say."""
    sizes: dict[str, Any] = {"hidden_size": 128, "intermediate_size": 256, **more}
    folder = make_model(family, tmp_path / "made", seed=3, layers=2, **sizes)
    quantised, plain = quantise(folder, tmp_path, METHODS[name])
    engine = native(quantised, kernel)
    tokens, logits = answer(engine)
    expected, wanted = answer(native(plain, kernel))
    assert tokens == expected
    assert np.allclose(logits, wanted, rtol=1e-4, atol=1e-4)
    by_torch, other = answer(SpanEngine.load(Checkpoint.open(str(quantised)), WHOLE, dtype="f32"))
    assert by_torch == expected
    assert np.allclose(other, logits, rtol=1e-3, atol=1e-3)
    one, another = NativeCheckpoint.open(str(quantised), F32), Checkpoint.open(str(quantised))
    assert one.stage_digests(WHOLE) == another.stage_digests(WHOLE)
    assert [one.stage_bytes(stage, "f32") for stage in WHOLE] == list(
        estimate(str(quantised)).footprints["f32"].stages
    )


@pytest.mark.parametrize("name", METHODS)
def test_groups_that_are_ours_stay_as_they_are(name: str, make: Make, kernel: Kernel) -> None:
    """In four bits and in eight: nothing is rounded but scales and minima, to 16 bits."""
    quantised, plain = (str(folder) for folder in make(name))
    for precision, same in ((INT4, name in FOURS), (INT8, name in EIGHTS)):
        found = Loader(NativeCheckpoint.open(quantised, precision), kernel).block(1).down
        wide = Loader(NativeCheckpoint.open(plain, F32), kernel).block(1).down
        repacked = Loader(NativeCheckpoint.open(plain, precision), kernel).block(1).down
        assert found is not None
        assert wide is not None
        assert repacked is not None
        assert found.kind is (Kind.INT4 if precision is INT4 or name in FOURS else Kind.INT8)
        error, anew = (np.abs(values(kept) - values(wide)).max() for kept in (found, repacked))
        assert bool(error < 1e-3 * np.abs(values(wide)).max()) is same
        if not same:
            assert error == pytest.approx(anew)


@pytest.mark.parametrize("name", METHODS)
def test_it_is_one_model_whoever_opens_it(name: str, make: Make) -> None:
    """Digests are the same by both engines, and those of stages are of what is stored."""
    quantised, plain = make(name)
    one, other = NativeCheckpoint.open(str(quantised), F32), Checkpoint.open(str(quantised))
    assert one.manifest == other.manifest
    assert one.stage_digests(WHOLE) == other.stage_digests(WHOLE)
    assert all(opened.has(stage) for opened in (one, other) for stage in WHOLE)
    different = [
        a != b
        for a, b in zip(
            one.stage_digests(WHOLE), Checkpoint.open(str(plain)).stage_digests(WHOLE), strict=True
        )
    ]
    assert different == [False, True, True, METHODS[name].head]


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", ["gptq", "fp8, blocks", "packed, 8 bits, head", "mxfp4", "nf4"])
def test_the_memory_that_is_told_is_what_it_takes(
    name: str, precision: str, make: Make, kernel: Kernel
) -> None:
    """Before anything is loaded, by the files and by config.json alone."""
    folder = str(make(name)[0])
    checkpoint = NativeCheckpoint.open(folder, PRECISIONS[precision])
    loader = Loader(checkpoint, kernel)
    head = loader.head()
    loaded = [loader.embedding().nbytes, loader.block(0).nbytes, loader.block(1).nbytes]
    loaded.append(head.matrix.nbytes + head.norm.nbytes)
    assert [checkpoint.stage_bytes(stage, "f32") for stage in WHOLE] == loaded
    told = estimate(folder)
    assert list(told.footprints[precision].stages) == loaded
    assert not told.refused


@pytest.mark.parametrize("name", METHODS)
def test_the_size_of_the_files_is_told(name: str, make: Make) -> None:
    """Of config.json alone, which leaves out dtypes of scales and the sizes of blocks."""
    folder = make(name)[0]
    files = NativeCheckpoint.open(str(folder), F32)._files
    told = estimate(str(folder))
    assert told.stored is not None
    for stage, expected in enumerate(told.stored):
        names = NativeCheckpoint.open(str(folder), F32)._stages[stage]
        stored = sum(tensor.stop - tensor.start for _, tensor in files.parts(names).values())
        assert expected == pytest.approx(stored, rel=0.1)


def test_only_the_parts_of_the_span_are_needed(make: Make, kernel: Kernel, tmp_path: Path) -> None:
    """By both engines: here everything else is in a file that is not there."""
    folder = Path(shutil.copytree(make("gptq")[0], tmp_path / "part"))
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    here = {name: tensor for name, tensor in tensors.items() if name.startswith("model.layers.1.")}
    save_file(here, folder / "here.safetensors")
    files = {name: f"{'here' if name in here else 'there'}.safetensors" for name in tensors}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    assert native(folder, kernel, Span(2, 3)).weight_bytes
    assert SpanEngine.load(Checkpoint.open(str(folder)), Span(2, 3), dtype="f32").weight_bytes
    for checkpoint in (NativeCheckpoint.open(str(folder), F32), Checkpoint.open(str(folder))):
        assert [checkpoint.has(stage) for stage in WHOLE] == [False, False, True, False]
        assert checkpoint.stage_bytes(1, "f32") == checkpoint.stage_bytes(2, "f32")
        with pytest.raises(BadCheckpoint, match=r"there.safetensors is missing"):
            checkpoint.require(Span(1, 2))
