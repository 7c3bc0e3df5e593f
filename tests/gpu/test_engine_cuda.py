"""The engine on a CUDA device: split or not, and there or on the CPU, it computes the same within rounding."""

import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from node.compute.call import run_alone
from node.compute.measure import measure
from node.engine.checkpoint import Checkpoint
from node.engine.ends import LocalEnds
from node.engine.span import SpanEngine
from protocol.candidates import HIDDEN, Candidates, Want
from protocol.model import Span
from protocol.tensors import Tensor, from_numpy
from tests.support.models import make_model

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]

FAMILIES = ["llama", "gemma3_text", "mixtral", "deepseek_v3", "opt", "gptj", "qwen3_next"]
PROMPT = np.array([11, 200, 3, 77, 77, 145, 90, 8, 31, 222, 64, 5], dtype=np.int32)
ALL = Want(every=True, top=0)


@pytest.fixture(autouse=True)
def full_precision() -> Iterator[None]:
    """fp32 products in fp32, not in TF32."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32 = before


def run(checkpoint: Checkpoint, cuts: list[int], dtype: str, device: str) -> list[Candidates]:
    """Prefill in two chunks, then two tokens, through the spans between the cuts."""
    spans = [Span(a, b) for a, b in itertools.pairwise(cuts)]
    engines = [SpanEngine.load(checkpoint, span, dtype=dtype, device=device) for span in spans]
    caches = [engine.new_cache(engine.span) for engine in engines]
    found = []
    for chunk in np.split(PROMPT, [6, 10, 11]):
        given: Tensor | Candidates | None = from_numpy(chunk)
        for engine, cache in zip(engines, caches, strict=True):
            assert isinstance(given, Tensor)
            given = run_alone(engine, cache, cache.length, given, ALL)
        assert isinstance(given, Candidates)
        found.append(given)
    return found


def logits_of(found: Candidates) -> np.ndarray:
    """In the order of ids."""
    logits = np.empty_like(found.logits)
    np.put_along_axis(logits, found.ids.astype(np.int64), found.logits, 1)
    return logits


@pytest.mark.parametrize("family", FAMILIES)
def test_spans_on_the_device_equal_the_model_in_one_piece(family: str, tmp_path: Path) -> None:
    """Within rounding, in fp32 and in bf16: experts are summed in no fixed order on a device."""
    checkpoint = Checkpoint.open(str(make_model(family, tmp_path / family, seed=7, sharded=True)))
    for dtype, atol in (("f32", 2e-3), ("bf16", 0.5)):
        whole, split = (run(checkpoint, cuts, dtype, "cuda") for cuts in ([0, 6], [0, 1, 3, 5, 6]))
        for one, other in zip(whole, split, strict=True):
            np.testing.assert_allclose(logits_of(other), logits_of(one), atol=atol)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_device_computes_what_the_cpu_computes(family: str, tmp_path: Path) -> None:
    """In fp32, within rounding."""
    checkpoint = Checkpoint.open(str(make_model(family, tmp_path / family, seed=7)))
    for ours, theirs in zip(
        run(checkpoint, [0, 6], "f32", "cuda"), run(checkpoint, [0, 6], "f32", "cpu"), strict=True
    ):
        np.testing.assert_allclose(logits_of(ours), logits_of(theirs), atol=2e-3)


def test_both_ends_run_on_the_device(tmp_path: Path) -> None:
    """Hidden states come to the CPU to travel, whatever the device; going back in the cache stays exact."""
    checkpoint = Checkpoint.open(str(make_model("llama", tmp_path / "llama", seed=7)))
    ends = LocalEnds.load(checkpoint, device="cuda")
    engine = SpanEngine.load(checkpoint, Span(1, 5), device="cuda")
    assert engine.dtype == ends.dtype == "f32"
    cache = engine.new_cache(engine.span)
    first = run_alone(engine, cache, 0, ends.embed(from_numpy(PROMPT), 0), HIDDEN)
    again = run_alone(engine, cache, 0, ends.embed(from_numpy(PROMPT), 0), HIDDEN)
    assert isinstance(first, Tensor)
    assert isinstance(again, Tensor)
    assert bytes(first.data) == bytes(again.data)
    assert ends.head(first, Want(top=3), 0).ids.shape == (1, 3)


def test_speed_is_measured_on_the_device(tmp_path: Path) -> None:
    """A step ends when its result is on the CPU, so times are those of the whole step."""
    checkpoint = Checkpoint.open(str(make_model("llama", tmp_path / "llama", seed=7)))
    speed = measure(SpanEngine.load(checkpoint, Span(0, 6), dtype="bf16", device="cuda"))
    assert min(speed.decode_ms_per_block, speed.prefill_ms_per_token_block, speed.head_ms) > 0
