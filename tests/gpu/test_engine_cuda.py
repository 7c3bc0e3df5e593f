"""The engine on a CUDA device: split or not, and there or on the CPU, it computes the same within rounding."""

import contextlib
import itertools
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from node.compute.call import run_alone
from node.compute.interfaces import Call, KvCache
from node.compute.measure import measure
from node.engine import card
from node.engine.backend import TorchBackend
from node.engine.checkpoint import Checkpoint
from node.engine.convert import hidden_out
from node.engine.ends import LocalEnds
from node.engine.span import SpanEngine
from node.native.packed import Kind
from protocol.candidates import HIDDEN, NOTHING, Candidates, Want
from protocol.errors import CacheFull, ConfigError
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


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt_oss", "qwen3_moe", "mistral"])
def test_sessions_decode_together_on_the_device(family: str, tmp_path: Path) -> None:
    """Each gets what it gets alone, within rounding, whatever the lengths of the others."""
    checkpoint = Checkpoint.open(str(make_model(family, tmp_path / family, seed=7)))
    for dtype, most in (("f32", 1e-3), ("bf16", 0.1)):
        engine = SpanEngine.load(checkpoint, Span(0, 6), dtype=dtype, device="cuda")
        assert engine.batches
        assert engine.records or family in ("gpt_oss", "qwen3_moe")
        together, alone = (caches_of(engine, (1, 6, 9, 30)) for _ in range(2))
        for token in (7, 99, 3):
            inputs = from_numpy(np.array([token], np.int32))
            found = engine.run([Call(cache, cache.length, inputs, ALL) for cache in together])
            for given, cache in zip(found, alone, strict=True):
                expected = run_alone(engine, cache, cache.length, inputs, ALL)
                assert isinstance(given, Candidates)
                assert isinstance(expected, Candidates)
                ours, theirs = logits_of(given), logits_of(expected)
                assert np.linalg.norm(ours - theirs) <= most * np.linalg.norm(theirs)


@pytest.mark.parametrize("ins", [32, 64, 96, 128, 640])
@pytest.mark.parametrize("kind", [Kind.INT8, Kind.INT4])
def test_a_product_in_few_bits_is_the_one_with_its_weights(kind: Kind, ins: int) -> None:
    """By the card's kernel for few rows, and by widening for many: within rounding in bf16."""
    generator = torch.Generator().manual_seed(3)
    weight, bias = (torch.randn(*shape, generator=generator).cuda() for shape in ((52, ins), (52,)))
    groups = card.group(kind, weight)
    product = card.CardProduct(groups, bias)
    for rows in (1, 3, 17, 200):
        states = torch.randn(rows, ins, generator=generator).cuda().bfloat16()
        wanted = states.double() @ groups.floats().double().T + bias.double()
        found = product(states).double()
        assert (found - wanted).norm() <= 0.01 * wanted.norm()


@pytest.mark.parametrize("quant", ["int8", "int4"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral"])
def test_weights_in_few_bits_on_the_device(family: str, quant: str, tmp_path: Path) -> None:
    """They are about what they are in bf16, in less memory; sessions decode together, recorded too."""
    folder = str(make_model(family, tmp_path / family, seed=7, hidden_size=64))
    backends = {
        q: TorchBackend.open(folder, cache_dir=None, dtype=None, device="cuda", quant=q)
        for q in (None, quant)
    }
    plain, packed = (backend.load(Span(1, 6)) for backend in backends.values())
    if family != "mixtral":  # whose small routers stay
        assert packed.weight_bytes < (0.4 if quant == "int8" else 0.35) * plain.weight_bytes
    assert packed.dtype == "bf16"
    assert str(packed.numerics) == quant
    assert packed.batches
    assert packed.records or family == "mixtral"
    rng = np.random.default_rng(5)
    states = rng.standard_normal((200, 64), np.float32)

    def logits(engine: SpanEngine, rows: int) -> np.ndarray:
        cache = engine.new_cache(engine.span)
        dtype = torch.bfloat16 if engine is packed else torch.float32
        given = hidden_out(torch.from_numpy(states[:rows]).to(dtype))
        out = run_alone(engine, cache, 0, given, ALL)
        assert isinstance(out, Candidates)
        return logits_of(out)

    many, few = logits(packed, 200), logits(packed, 9)
    if family != "mixtral":  # where another expert may be chosen
        assert np.linalg.norm(many[:9] - few) <= 0.05 * np.linalg.norm(few)
        wanted = logits(plain, 200)
        assert np.linalg.norm(many - wanted) <= (0.1 if quant == "int8" else 0.4) * np.linalg.norm(wanted)


def caches_of(engine: SpanEngine, lengths: tuple[int, ...]) -> list[KvCache]:
    """Caches that hold so many tokens."""
    caches: list[KvCache] = []
    for length in lengths:
        caches.append(engine.new_cache(engine.span))
        run_alone(engine, caches[-1], 0, from_numpy(np.arange(length, dtype=np.int32)), NOTHING)
    return caches


@contextlib.contextmanager
def no_memory_left() -> Iterator[None]:
    """All memory of the device that this process may take is taken."""
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + (64 << 20)) / total)
    taken = []
    size_bytes = 32 << 20
    while size_bytes >= 512:
        try:
            taken.append(torch.empty(size_bytes, dtype=torch.uint8, device="cuda"))
        except torch.OutOfMemoryError:
            size_bytes //= 2
    try:
        yield
    finally:
        taken.clear()
        torch.cuda.set_per_process_memory_fraction(1.0)


def test_a_full_device_turns_a_session_away_and_the_engine_lives_on(tmp_path: Path) -> None:
    """Who asks is told that there is no memory for now; with room again the very same steps are computed."""
    checkpoint = Checkpoint.open(str(make_model("llama", tmp_path / "llama", seed=7)))
    engine = SpanEngine.load(checkpoint, Span(0, 6), dtype="f32", device="cuda")
    prompt = from_numpy(np.arange(512, dtype=np.int32) % 256)
    caches = caches_of(engine, (64, 64))
    token = from_numpy(np.array([7], np.int32))
    calls = [
        *(Call(cache, 64, token, ALL) for cache in caches),
        Call(engine.new_cache(engine.span), 0, prompt, ALL),
    ]
    expected = engine.run(calls)
    for cache in caches:
        cache.close()
    caches = caches_of(engine, (64, 64))
    calls = [
        *(Call(cache, 64, token, ALL) for cache in caches),
        Call(engine.new_cache(engine.span), 0, prompt, ALL),
    ]
    with no_memory_left():
        assert isinstance(engine.run(calls)[2], CacheFull)
    found = engine.run(calls)
    for given, wanted in zip(found, expected, strict=True):
        assert isinstance(given, Candidates)
        assert isinstance(wanted, Candidates)
        np.testing.assert_allclose(logits_of(given), logits_of(wanted), atol=2e-3)


def test_a_model_that_does_not_fit_is_refused_in_one_line(tmp_path: Path) -> None:
    """With the memory that it needs, before anything is served."""
    checkpoint = Checkpoint.open(str(make_model("llama", tmp_path / "llama", seed=7)))
    SpanEngine.load(checkpoint, Span(0, 6), device="cuda")
    with no_memory_left(), pytest.raises(ConfigError, match="no memory for stages 0:6"):
        SpanEngine.load(checkpoint, Span(0, 6), device="cuda")


def test_weights_stored_in_bf16_are_computed_in_bf16(tmp_path: Path) -> None:
    """As they are, with nothing said."""
    folder = make_model("llama", tmp_path / "llama", seed=7)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"dtype": "bfloat16"}))
    assert SpanEngine.load(Checkpoint.open(str(folder)), Span(0, 6), device="cuda").dtype == "bf16"


def test_speed_is_measured_on_the_device(tmp_path: Path) -> None:
    """A step ends when its result is on the CPU, so times are those of the whole step."""
    checkpoint = Checkpoint.open(str(make_model("llama", tmp_path / "llama", seed=7)))
    speed = measure(SpanEngine.load(checkpoint, Span(0, 6), dtype="bf16", device="cuda"))
    assert min(speed.decode_ms_per_block, speed.prefill_ms_per_token_block, speed.head_ms) > 0
