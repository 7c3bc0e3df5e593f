"""DeepSeek's attention over weights in other forms: of one matrix rows are taken, and turned round."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from node.compute.call import run_alone
from node.native.checkpoint import NativeCheckpoint
from node.native.engine import NativeEngine
from node.native.kernel import Kernel
from node.native.load import load_kernel
from node.native.packed import Kind
from node.native.precision import F32, PRECISIONS
from node.native.weights import Loader
from protocol.candidates import Candidates, Want
from protocol.model import Span
from protocol.tensors import from_numpy
from tests.support.models import make_model
from tests.support.quantised import METHODS, quantise

PROMPT = np.array([11, 200, 3, 77, 77, 145, 90, 8, 31, 222, 64, 5], dtype=np.int32)
NAMES = ("fp8, blocks", "gptq, zeros", "packed, 8 bits, head", "nf4")
# Multiples of every group; heads have to be padded.
SIZES: dict[str, Any] = {
    "hidden_size": 128,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "q_lora_rank": 128,
    "kv_lora_rank": 128,
    "qk_nope_head_dim": 24,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
    "moe_intermediate_size": 128,
}


@pytest.fixture(scope="module")
def kernel() -> Kernel:
    """With one thread."""
    return load_kernel(1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model before it is quantised."""
    return make_model("deepseek_v3", tmp_path_factory.mktemp("plain") / "model", seed=3, layers=2, **SIZES)


def logits(folder: Path, kernel: Kernel) -> Any:
    """Of the prompt, in full precision."""
    checkpoint = NativeCheckpoint.open(str(folder), F32)
    engine = NativeEngine.load(checkpoint, Span(0, checkpoint.manifest.stages), kernel)
    found = run_alone(engine, engine.new_cache(engine.span), 0, from_numpy(PROMPT), Want(top=0, every=True))
    assert isinstance(found, Candidates)
    return np.take_along_axis(found.logits, np.argsort(found.ids, axis=1), 1)


@pytest.mark.parametrize("name", NAMES)
def test_they_are_what_the_plain_weights_make(
    name: str, folder: Path, tmp_path: Path, kernel: Kernel
) -> None:
    """By the kernels from either, and by transformers."""
    quantised, plain = quantise(folder, tmp_path, METHODS[name])
    found = logits(quantised, kernel)
    with torch.inference_mode():
        model = AutoModelForCausalLM.from_pretrained(plain).eval()
        expected = model(torch.from_numpy(PROMPT.astype(np.int64))[None]).logits[0].numpy()
    assert np.allclose(found, logits(plain, kernel), rtol=1e-4, atol=1e-4)
    assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", NAMES)
def test_the_memory_that_is_told_is_what_it_takes(
    name: str, precision: str, folder: Path, tmp_path: Path, kernel: Kernel
) -> None:
    """Groups of four bits are kept, but for the matrix that is turned round."""
    quantised, _ = quantise(folder, tmp_path, METHODS[name])
    checkpoint = NativeCheckpoint.open(str(quantised), PRECISIONS[precision])
    blocks = [Loader(checkpoint, kernel).block(index) for index in range(2)]
    assert [checkpoint.stage_bytes(1 + index, "f32") for index in range(2)] == [b.nbytes for b in blocks]
    key_up, value_up = blocks[0].key_up, blocks[0].value_up
    assert key_up is not None
    assert value_up is not None
    if precision in ("int8", "int4"):
        assert key_up.kind is Kind.INT8
        assert value_up.kind is (Kind.INT4 if name == "gptq, zeros" else Kind.INT8)
