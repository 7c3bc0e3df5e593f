"""A model split over any spans equals the unsplit model to the bit, in fp32."""

from collections.abc import Callable

import numpy as np
import pytest

from node.compute.call import run_alone
from node.engine.checkpoint import Checkpoint
from node.engine.span import SpanEngine
from protocol.candidates import HIDDEN, NOTHING, Candidates, Want
from protocol.errors import UnsupportedModel
from protocol.model import Span
from protocol.tensors import Tensor, from_numpy
from tests.node.engine.conftest import Tiny
from tests.node.engine.whole import ALL_LOGITS, BY_ROW, PROMPT, Chain, Whole, chunked, logits_of, states
from tests.support.models import FAMILIES

RECURRENT = ("qwen3_next", "mamba")
ATTENDING = [family for family in FAMILIES if family not in RECURRENT]
WHOLE, HALVES, QUARTERS = [0, 6], [0, 3, 6], [0, 1, 2, 4, 6]


def assert_same(found: list[np.ndarray], expected: list[np.ndarray]) -> None:
    """Bit for bit."""
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("family", FAMILIES)
def test_spans_of_any_family_equal_the_unsplit_model(
    family: str, tiny: Tiny, whole: Callable[[str], Whole]
) -> None:
    """Split in 1, 2 and 4 with thin clients; prefill at once and in chunks, then single tokens."""
    checkpoint = Checkpoint.open(str(tiny(family)))
    for sizes in ((9, 1, 1, 1), (5, 4, 1, 2)):
        chunks = chunked(PROMPT, *sizes)
        expected = whole(family).logits(chunks)
        for cuts in (WHOLE, HALVES, QUARTERS):
            assert_same(Chain(checkpoint, cuts).logits(chunks), expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_ends_at_the_client_equal_the_unsplit_model(
    family: str, tiny: Tiny, whole: Callable[[str], Whole]
) -> None:
    """Embedding and head at the client, the blocks in two spans between them."""
    chunks = chunked(PROMPT, 6, 3, 1, 1, 1)
    chain = Chain(Checkpoint.open(str(tiny(family))), [1, 2, 5], ends=True)
    found, expected = chain.logits(chunks), whole(family).logits(chunks)
    if family in BY_ROW:  # its head takes the rows of a chunk together, the reference one by one: other sums
        for ours, theirs in zip(found, expected, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)
    else:
        assert_same(found, expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_decoding_gives_the_tokens_of_generate(
    family: str, tiny: Tiny, whole: Callable[[str], Whole]
) -> None:
    """Twelve tokens, past every sliding window of these models."""
    chain = Chain(Checkpoint.open(str(tiny(family))), HALVES)
    assert chain.greedy(PROMPT, 12) == whole(family).greedy(PROMPT, 12)


@pytest.mark.parametrize("family", ATTENDING)
def test_going_back_and_on_with_other_tokens_leaves_no_trace(
    family: str, tiny: Tiny, whole: Callable[[str], Whole]
) -> None:
    """After a rollback, also to before a sliding window, the model is as if the tokens cut had never been."""
    chain = Chain(Checkpoint.open(str(tiny(family))), HALVES)
    chain.logits(chunked(PROMPT, 2, 7, 3))
    other = PROMPT[::-1].copy()
    # Rows are only the same to the bit if they came in the same chunks, so both turns begin between two chunks.
    found = [logits_of(chain.step(chunk, position=at)) for at, chunk in ((9, other[:2]), (11, other[2:3]))]
    assert_same(found, whole(family).logits([PROMPT[:2], PROMPT[2:9], other[:2], other[2:3]])[2:])
    found = [logits_of(chain.step(chunk, position=at)) for at, chunk in ((2, other[:6]), (8, other[6:7]))]
    assert_same(found, whole(family).logits([PROMPT[:2], other[:6], other[6:7]])[1:])


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "opt", "qwen3_next"])
def test_a_route_may_enter_and_leave_in_the_middle_of_a_span(
    family: str, tiny: Tiny, whole: Callable[[str], Whole]
) -> None:
    """Two engines that overlap, each used for a part of what it holds."""
    checkpoint = Checkpoint.open(str(tiny(family)))
    left = SpanEngine.load(checkpoint, Span(0, 5), dtype="f32")
    right = SpanEngine.load(checkpoint, Span(1, 6), dtype="f32")
    chunks = chunked(PROMPT, 7, 4, 1)
    for cut in (1, 3, 5):
        before, after = left.new_cache(Span(0, cut)), right.new_cache(Span(cut, 6))
        found = []
        for chunk in chunks:
            hidden = run_alone(left, before, before.length, from_numpy(chunk), HIDDEN)
            assert isinstance(hidden, Tensor)
            out = run_alone(right, after, after.length, hidden, Want(every=True, top=0))
            assert isinstance(out, Candidates)
            found.append(logits_of(out))
        assert_same(found, whole(family).logits(chunks))


def test_sessions_share_an_engine_without_touching_each_other(
    tiny: Tiny, whole: Callable[[str], Whole]
) -> None:
    """Two sessions take turns; each gets what it would get alone."""
    engine = SpanEngine.load(Checkpoint.open(str(tiny("llama"))), Span(0, 6), dtype="f32")
    prompts = (PROMPT, PROMPT[::-1].copy())
    caches = [engine.new_cache(engine.span) for _ in prompts]
    found: list[list[np.ndarray]] = [[], []]
    for n in range(0, 12, 3):
        for prompt, cache, logits in zip(prompts, caches, found, strict=True):
            out = run_alone(engine, cache, n, from_numpy(prompt[n : n + 3]), Want(every=True, top=0))
            assert isinstance(out, Candidates)
            logits.append(logits_of(out))
    for prompt, logits in zip(prompts, found, strict=True):
        assert_same(logits, whole("llama").logits(chunked(prompt, 3, 3, 3, 3)))


@pytest.mark.parametrize("family", RECURRENT)
def test_recurrent_layers_go_back_to_the_start_only(family: str, tiny: Tiny) -> None:
    """A state that cannot be wound back is refused in words; from position 0 it begins anew."""
    chain = Chain(Checkpoint.open(str(tiny(family))), WHOLE)
    first = logits_of(chain.step(PROMPT))
    with pytest.raises(UnsupportedModel, match="recurrent"):
        chain.step(PROMPT[:1], position=5)
    np.testing.assert_array_equal(logits_of(chain.step(PROMPT, position=0)), first)


@pytest.mark.parametrize("family", RECURRENT)
def test_recurrent_layers_fork_where_they_stand(family: str, tiny: Tiny) -> None:
    """Their state is copied as it is, and nowhere else but at the start."""
    engine = SpanEngine.load(Checkpoint.open(str(tiny(family))), Span(1, 5), dtype="f32")
    cache = engine.new_cache(engine.span)
    run_alone(engine, cache, 0, states(7, engine.hidden_size), NOTHING)
    forks = [cache.fork(7), cache, cache.fork(0)]
    with pytest.raises(UnsupportedModel, match="recurrent"):
        cache.fork(3)
    found = [run_alone(engine, fork, fork.length, states(2, engine.hidden_size), NOTHING) for fork in forks]
    rows = [out.data for out in found if isinstance(out, Tensor)]
    assert rows[0] == rows[1] != rows[2]


@pytest.mark.parametrize("family", ["llama", "qwen3_next"])
def test_a_forward_that_fails_half_way_leaves_no_trace(family: str, tiny: Tiny) -> None:
    """The step can be made again; where a recurrent state may have moved, only from the beginning."""
    engine = SpanEngine.load(Checkpoint.open(str(tiny(family))), Span(1, 6), dtype="f32")
    cache, other = engine.new_cache(engine.span), engine.new_cache(engine.span)
    first, second = states(4, 64), states(2, 64, seed=1)
    run_alone(engine, cache, 0, first, NOTHING)

    def fail(*args: object) -> None:
        raise MemoryError

    # The fourth block, after three blocks have taken the rows.
    block = engine._model._model.get_submodule("model.layers.3.mlp")
    hook = block.register_forward_pre_hook(fail)
    with pytest.raises(MemoryError):
        run_alone(engine, cache, 4, second, NOTHING)
    hook.remove()
    if family in RECURRENT:
        with pytest.raises(UnsupportedModel, match="recurrent"):
            run_alone(engine, cache, 4, second, NOTHING)
        run_alone(engine, cache, 0, first, NOTHING)
    found = run_alone(engine, cache, 4, second, ALL_LOGITS)
    run_alone(engine, other, 0, first, NOTHING)
    expected = run_alone(engine, other, 4, second, ALL_LOGITS)
    assert isinstance(found, Candidates)
    assert isinstance(expected, Candidates)
    np.testing.assert_array_equal(found.logits, expected.logits)


def test_long_sessions_outgrow_their_buffers_unnoticed(tiny: Tiny, whole: Callable[[str], Whole]) -> None:
    """Buffers grow at 64, 128 and 256 positions; decoding across them stays exact."""
    rng = np.random.default_rng(3)
    tokens = rng.integers(0, 256, 300).astype(np.int32)
    chunks = chunked(tokens, 60, 1, 1, 1, 1, 1, 1, 62, 1, 128, 1, 1, 41)
    chain = Chain(Checkpoint.open(str(tiny("mistral"))), HALVES)
    assert_same(chain.logits(chunks), whole("mistral").logits(chunks))


@pytest.mark.parametrize("dtype", ["bf16", "f16"])
def test_narrow_dtypes_split_as_exactly(dtype: str, tiny: Tiny) -> None:
    """In bf16 and fp16 two spans give what one gives, and hidden states travel in the engine's dtype."""
    checkpoint = Checkpoint.open(str(tiny("llama")))
    chunks = chunked(PROMPT, 8, 3, 1)
    one, two = Chain(checkpoint, WHOLE, dtype=dtype), Chain(checkpoint, HALVES, dtype=dtype)
    assert_same(two.logits(chunks), one.logits(chunks))
    hidden = run_alone(two.engines[0], two.caches[0], 0, from_numpy(PROMPT), HIDDEN)
    assert isinstance(hidden, Tensor)
    assert hidden.dtype == dtype
    assert hidden.shape == (12, 64)
