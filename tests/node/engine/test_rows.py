"""Decode steps of several sessions, computed together, give each what it gets alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from node.compute.call import run_alone
from node.compute.interfaces import Call, KvCache, StepResult
from node.engine.batching import BATCHED
from node.engine.checkpoint import Checkpoint
from node.engine.span import SpanEngine
from node.engine.trial import Trial
from protocol.candidates import HIDDEN, NOTHING, Candidates, Want
from protocol.errors import Malformed, SwarmError
from protocol.model import Span
from protocol.tensors import Tensor, from_numpy
from tests.node.engine.conftest import Tiny
from tests.node.engine.variants import EXACT
from tests.node.engine.whole import PROMPT, logits_of, states
from tests.support.models import FAMILIES, make_model

ALL = Want(top=0)
# Longer than the windows of the tiny models, and as long; one has just begun.
LENGTHS = (1, 6, 9, 30)
STEPS = 8


def kind_of(name: str) -> str:
    """The model type that a name of the tests stands for."""
    return {"gemma3/multimodal": "gemma3_text"}.get(name, name.partition("/")[0])


TOGETHER = [name for name in (*FAMILIES, *EXACT) if kind_of(name) in BATCHED]
ALONE = [name for name in (*FAMILIES, *EXACT) if kind_of(name) not in BATCHED]


def load(name: str, folder: Path) -> SpanEngine:
    """An engine of a tiny random model."""
    path = make_model(name.partition("/")[0], folder / "model", seed=3, **EXACT.get(name, {}))
    return SpanEngine.load(Checkpoint.open(str(path)), Span(0, 6), dtype="f32")


def filled(engine: SpanEngine, seed: int = 1) -> list[KvCache]:
    """A cache for each of LENGTHS, holding so many made-up tokens."""
    rng = np.random.default_rng(seed)
    caches: list[KvCache] = []
    for length in LENGTHS:
        caches.append(engine.new_cache(engine.span))
        run_alone(engine, caches[-1], 0, from_numpy(rng.integers(0, 256, length).astype(np.int32)), NOTHING)
    return caches


def logits(given: StepResult | Exception) -> np.ndarray:
    """In the order of ids."""
    assert isinstance(given, Candidates)
    return logits_of(given)


def worst_difference(engine: SpanEngine) -> float:
    """Of logits of rows computed together from those computed alone, relative to these."""
    together, alone = filled(engine), filled(engine)
    tokens = np.random.default_rng(2).integers(0, 256, (STEPS, len(LENGTHS), 1)).astype(np.int32)
    worst = 0.0
    for step in tokens:
        inputs = [from_numpy(row) for row in step]
        calls = [Call(cache, cache.length, row, ALL) for cache, row in zip(together, inputs, strict=True)]
        found = np.concatenate([logits(given) for given in engine.run(calls)])
        expected = np.concatenate(
            [
                logits(run_alone(engine, cache, cache.length, row, ALL))
                for cache, row in zip(alone, inputs, strict=True)
            ]
        )
        worst = max(worst, float(np.linalg.norm(found - expected) / np.linalg.norm(expected)))
    return worst


@pytest.mark.parametrize("name", TOGETHER)
def test_rows_of_a_batch_are_what_they_are_alone(name: str, tmp_path: Path) -> None:
    """Sessions of different lengths, past every window, over several steps: equal but for rounding."""
    engine = load(name, tmp_path)
    assert engine.batches
    assert worst_difference(engine) < 1e-5


@pytest.mark.parametrize("name", ALONE)
def test_what_no_batch_can_hold_runs_one_after_the_other(name: str, tmp_path: Path) -> None:
    """The very same numbers; and together it fails, or is found out, whatever the list of families says."""
    engine = load(name, tmp_path)
    assert not engine.batches
    assert not Trial(engine._model, engine.span).rows_agree()
    assert worst_difference(engine) == 0.0


def test_rotary_frequencies_that_sessions_would_share_keep_them_apart(tmp_path: Path) -> None:
    """A forward takes them by the furthest of its positions: a long session would bend the others."""
    scaled = {"rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": 256}
    factors = {"short_factor": [1.0] * 8, "long_factor": [2.0] * 8}
    folder = make_model("phi3", tmp_path / "model", seed=3, rope_parameters=scaled | factors)
    assert not SpanEngine.load(Checkpoint.open(str(folder)), Span(0, 6), dtype="f32").batches


@pytest.mark.parametrize(("span", "wants"), [(Span(2, 4), (NOTHING, HIDDEN)), (Span(5, 6), (ALL, NOTHING))])
def test_spans_without_ends_batch_too(span: Span, wants: tuple[Want, Want], tiny: Tiny) -> None:
    """States in, states out, in memory that no two results share; a head gives candidates to those who want them."""
    engine = SpanEngine.load(Checkpoint.open(str(tiny("llama"))), span, dtype="f32")
    caches = [engine.new_cache(span) for _ in range(4)]
    for cache, length in zip(caches, (3, 1, 0, 5), strict=True):
        if length:
            run_alone(engine, cache, 0, states(length, 64, seed=length), NOTHING)
    rows = [states(1, 64, seed=20 + n) for n in range(4)]
    calls = [
        Call(c, c.length, row, wants[n % 2]) for n, (c, row) in enumerate(zip(caches, rows, strict=True))
    ]
    found = engine.run(calls)
    for call, given in zip(calls, found, strict=True):
        expected = run_alone(engine, call.cache, call.position, call.inputs, call.want)
        assert type(given) is type(expected)
        if isinstance(given, Tensor) and isinstance(expected, Tensor):
            np.testing.assert_allclose(given.numpy(), expected.numpy(), rtol=1e-4, atol=1e-4)
            given.numpy()[:] = 0.0
        elif isinstance(expected, Candidates):
            np.testing.assert_allclose(logits(given), logits(expected), rtol=1e-4, atol=1e-4)
    untouched = engine.run(calls)
    assert len(untouched) == 4


def test_a_call_that_cannot_be_has_its_error_and_the_others_their_results(tiny: Tiny) -> None:
    """In order, with prompts, rows of other spans and all kinds of wants among them; its cache stays as it was."""
    engine = SpanEngine.load(Checkpoint.open(str(tiny("llama"))), Span(0, 6), dtype="f32")
    caches = filled(engine)
    short = engine.new_cache(Span(0, 3))
    token = from_numpy(np.array([7], np.int32))
    calls = [
        Call(caches[0], caches[0].length, token, ALL),
        Call(caches[1], 99, token, ALL),
        Call(caches[2], caches[2].length, from_numpy(np.array([264], np.int32)), ALL),
        Call(short, 0, token, HIDDEN),
        Call(caches[3], 2, from_numpy(PROMPT), Want(every=True, top=3)),
        Call(engine.new_cache(engine.span), 0, token, Want(top=3, ids=(5,), temperature=0.5)),
    ]
    found = engine.run(calls)
    assert [isinstance(given, Malformed) for given in found] == [False, True, True, False, False, False]
    assert [cache.length for cache in caches] == [2, 6, 9, 2 + len(PROMPT)]
    for call, given in zip(calls, found, strict=True):
        if not isinstance(given, SwarmError):
            expected = run_alone(engine, call.cache, call.position, call.inputs, call.want)
            if isinstance(expected, Candidates) and isinstance(given, Candidates):
                np.testing.assert_array_equal(given.ids, expected.ids)
                for name in ("logits", "lse", "asked"):
                    np.testing.assert_allclose(getattr(given, name), getattr(expected, name), rtol=1e-4)


def test_a_row_that_overflows_fails_alone(tiny: Tiny) -> None:
    """States that lead to logits which are not finite are one sender's fault."""
    engine = SpanEngine.load(Checkpoint.open(str(tiny("opt"))), Span(5, 6), dtype="f32")
    good, bad = states(1, 64), from_numpy(np.full((1, 64), 3e38, np.float32))
    calls = [Call(engine.new_cache(engine.span), 0, inputs, ALL) for inputs in (good, bad, good)]
    kinds = [type(given) for given in engine.run(calls)]
    assert kinds == [Candidates, Malformed, Candidates]


def test_after_a_batch_each_session_goes_back_and_on_by_itself(tiny: Tiny) -> None:
    """A row taken in a batch is cut like any other."""
    engine = SpanEngine.load(Checkpoint.open(str(tiny("mistral"))), Span(0, 6), dtype="f32")
    caches = filled(engine)
    token = from_numpy(np.array([7], np.int32))
    engine.run([Call(cache, cache.length, token, NOTHING) for cache in caches])
    for cache in caches:
        position = cache.length - 1
        expected = run_alone(engine, cache, position, token, ALL)
        again = engine.run([Call(each, each.length - 1, token, ALL) for each in caches])
        np.testing.assert_allclose(logits(again[caches.index(cache)]), logits(expected), rtol=1e-4, atol=1e-4)
