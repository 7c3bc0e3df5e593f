"""One step: what the engine refuses, what it returns, and what it keeps."""

import gc
import weakref
from collections.abc import Callable

import numpy as np
import pytest
import torch

from node.compute.call import run_alone
from node.compute.interfaces import Engine
from node.compute.measure import measure
from node.engine import head
from node.engine.checkpoint import Checkpoint
from node.engine.ends import LocalEnds
from node.engine.span import SpanEngine
from protocol.candidates import HIDDEN, NOTHING, Candidates, Want
from protocol.errors import LocalProtocolError, Malformed
from protocol.model import Span
from protocol.tensors import Tensor, from_numpy
from tests.node.engine.conftest import Tiny
from tests.node.engine.whole import PROMPT, Whole, logits_of, states


@pytest.fixture(scope="module")
def checkpoint(tiny: Tiny) -> Checkpoint:
    return Checkpoint.open(str(tiny("llama")))


@pytest.fixture(scope="module")
def engine(checkpoint: Checkpoint) -> Engine:
    """Typed as the daemon knows it."""
    return SpanEngine.load(checkpoint, Span(0, 6), dtype="f32")


def ids(*tokens: int) -> Tensor:
    return from_numpy(np.array(tokens, dtype=np.int32))


BAD_STATES = {
    "too narrow": states(2, 63),
    "no rows": states(0, 64),
    "one dimension": Tensor("f32", (64,), bytes(256)),
    "three dimensions": Tensor("f32", (1, 2, 64), bytes(512)),
    "another dtype": Tensor("f16", (2, 64), bytes(256)),
    "bf16": Tensor("bf16", (2, 64), bytes(256)),
    "integers": Tensor("i32", (2, 64), bytes(512)),
    "ids": ids(1, 2),
    "a NaN": from_numpy(np.full((1, 64), np.nan, np.float32)),
    "an infinity": from_numpy(np.full((1, 64), -np.inf, np.float32)),
}


@pytest.mark.parametrize("case", BAD_STATES)
def test_hidden_states_that_cannot_be_are_refused(case: str, engine: Engine) -> None:
    """By the sender's fault, and the cache is as it was."""
    cache = engine.new_cache(Span(1, 6))
    run_alone(engine, cache, 0, states(3, 64), NOTHING)
    good = run_alone(engine, cache, 3, states(1, 64), Want(top=0))
    with pytest.raises(Malformed):
        run_alone(engine, cache, 3, BAD_STATES[case], Want(top=0))
    again = run_alone(engine, cache, 3, states(1, 64), Want(top=0))
    assert isinstance(good, Candidates)
    assert isinstance(again, Candidates)
    np.testing.assert_array_equal(logits_of(again), logits_of(good))


@pytest.mark.parametrize(
    "inputs", [ids(264), ids(-1), ids(3, 1 << 30), ids(), states(1, 64), Tensor("i32", (1, 1), bytes(4))]
)
def test_token_ids_that_cannot_be_are_refused(inputs: Tensor, engine: Engine) -> None:
    """Outside the vocabulary, none at all, or no ids; by the embedding at the client too."""
    with pytest.raises(Malformed):
        run_alone(engine, engine.new_cache(engine.span), 0, inputs, Want())


@pytest.mark.parametrize("position", [1, 13, -1])
def test_a_step_beyond_the_end_of_the_cache_is_refused(position: int, engine: Engine) -> None:
    """Nothing stands between the cache's end and the step."""
    with pytest.raises(Malformed, match="position"):
        run_alone(engine, engine.new_cache(engine.span), position, ids(1), Want())


def test_tokens_beyond_the_context_are_refused(checkpoint: Checkpoint, engine: Engine) -> None:
    """Learned positions end with it."""
    cache = engine.new_cache(engine.span)
    run_alone(engine, cache, 0, from_numpy(np.zeros(512, np.int32)), NOTHING)
    with pytest.raises(Malformed, match="context"):
        run_alone(engine, cache, 512, ids(1), NOTHING)
    with pytest.raises(Malformed, match="context"):
        LocalEnds.load(checkpoint, dtype="f32").embed(ids(1, 2), 511)


@pytest.mark.parametrize(
    "want",
    [
        HIDDEN,
        Want(top=-1),
        Want(ids=(264,)),
        Want(ids=(-1,)),
        Want(temperature=0.0),
        Want(temperature=float("nan")),
    ],
)
def test_wants_that_the_head_cannot_meet_are_refused(want: Want, engine: Engine) -> None:
    """Before anything is computed."""
    cache = engine.new_cache(engine.span)
    with pytest.raises(Malformed):
        run_alone(engine, cache, 0, ids(1, 2), want)
    assert cache.length == 0


def test_the_wants_decide_what_the_head_returns(engine: Engine, whole: Callable[[str], Whole]) -> None:
    """Nothing, the last row, every row, the best few, those asked for, and the normaliser."""
    (expected,) = whole("llama").logits([PROMPT])
    cache = engine.new_cache(engine.span)
    assert run_alone(engine, cache, 0, from_numpy(PROMPT), NOTHING) is None
    assert cache.length == 12
    out = run_alone(
        engine, cache, 0, from_numpy(PROMPT), Want(every=True, top=5, ids=(7, 0, 7), temperature=0.5)
    )
    assert isinstance(out, Candidates)
    order = np.argsort(-expected, axis=1, kind="stable")[:, :5]
    np.testing.assert_array_equal(out.ids, order)
    np.testing.assert_array_equal(out.logits, np.take_along_axis(expected, order, 1))
    np.testing.assert_array_equal(out.asked, expected[:, [7, 0, 7]])
    lse = np.log(np.exp(expected.astype(np.float64) * 2).sum(1))
    np.testing.assert_allclose(out.lse, lse, rtol=1e-5)
    last = run_alone(engine, cache, 0, from_numpy(PROMPT), Want())
    assert isinstance(last, Candidates)
    assert last.ids.shape == last.logits.shape == (1, 1)
    assert last.asked.shape == (1, 0)
    assert last.ids[0, 0] == order[-1, 0]
    out.pack()


@pytest.mark.parametrize("top", [1, 2, 3, 5, 6, 0, 99])
def test_ties_go_to_the_lower_id(top: int) -> None:
    """However many candidates are wanted, as a stable sort would."""
    logits = torch.tensor([[1.0, 3.0, 3.0, -5.0, 3.0, 1.0], [2.0] * 6])
    found = head.candidates(logits, Want(top=top))
    count = min(top or 6, 6)
    assert found.ids.tolist() == [[1, 2, 4, 0, 5, 3][:count], [0, 1, 2, 3, 4, 5][:count]]


def test_logits_that_overflow_are_the_senders_fault() -> None:
    """States within the range of floats may still be out of the range of the model."""
    for bad in (float("nan"), float("inf")):
        with pytest.raises(Malformed, match="not finite"):
            head.candidates(torch.tensor([[0.0, 1.0], [bad, 0.0]]), Want(top=2))


def test_hidden_states_leave_whatever_is_wanted(engine: Engine) -> None:
    """A span that does not end with the head has to feed the next hop."""
    for span in (Span(0, 1), Span(0, 3), Span(0, 5)):
        for want in (NOTHING, HIDDEN, Want(every=False, top=3)):
            out = run_alone(engine, engine.new_cache(span), 0, ids(1, 2, 3), want)
            assert isinstance(out, Tensor)
            assert (out.dtype, out.shape) == ("f32", (3, 64))


def test_caches_are_for_stages_that_the_engine_holds(checkpoint: Checkpoint) -> None:
    """Asking for others is a bug of the node."""
    half = SpanEngine.load(checkpoint, Span(1, 4), dtype="f32")
    with pytest.raises(LocalProtocolError):
        half.new_cache(Span(2, 5))


def test_kv_bytes_are_what_a_position_takes(checkpoint: Checkpoint, engine: Engine) -> None:
    """Two tensors of 2 heads of 16 fp32 numbers in each of 4 blocks."""
    assert engine.kv_bytes_per_token() == 4 * 2 * 2 * 16 * 4
    assert SpanEngine.load(checkpoint, Span(5, 6), dtype="f32").kv_bytes_per_token() == 0


def test_a_closed_cache_holds_no_memory(engine: Engine) -> None:
    """Closing twice is safe."""
    cache = engine.new_cache(engine.span)
    run_alone(engine, cache, 0, from_numpy(PROMPT), NOTHING)
    cache.close()
    cache.close()
    assert cache.length == 0


@pytest.mark.parametrize("family", ["llama", "mistral", "mamba"])
def test_a_closed_cache_is_gone_without_a_collection(family: str, tiny: Tiny) -> None:
    """The collector of a node that serves hardly ever runs: its keys and values, or states, are counted out."""
    engine = SpanEngine.load(Checkpoint.open(str(tiny(family))), Span(0, 6), dtype="f32")
    cache = engine.new_cache(engine.span)
    run_alone(engine, cache, 0, from_numpy(PROMPT), NOTHING)
    gc.collect()
    gc.disable()
    try:
        held = [weakref.ref(slot) for slot in (cache.layers, *cache.layers.layers)]
        assert len(held) > 4
        cache.close()
        del cache
        assert [ref() for ref in held if ref() is not None] == []
    finally:
        gc.enable()


def test_a_cache_takes_no_memory_beyond_its_tokens(engine: SpanEngine) -> None:
    """Buffers grow ahead of need, but not ahead of what the session was opened for."""
    cache = engine.new_cache(engine.span, 10)
    for position in range(10):
        run_alone(engine, cache, position, ids(1), NOTHING)
    slots = [slot for slot in cache.layers.layers if hasattr(slot, "buffers")]
    assert {slot.buffers.keys.shape[2] for slot in slots} == {10}


def test_states_of_any_float_dtype_reach_a_local_head(checkpoint: Checkpoint) -> None:
    """A node may compute in another dtype than the client's own machine."""
    ends = LocalEnds.load(checkpoint, dtype="f32")
    hidden = ends.embed(ids(5, 6), 0)
    exact = ends.head(hidden, Want(), 0)
    half = from_numpy(hidden.numpy().astype(np.float16))
    assert ends.head(half, Want(), 0).ids.tolist() == exact.ids.tolist()
    with pytest.raises(LocalProtocolError):
        ends.head(hidden, HIDDEN, 0)


@pytest.mark.parametrize(("span", "dtype"), [(Span(0, 6), "f32"), (Span(2, 4), "bf16"), (Span(5, 6), "f16")])
def test_measuring_is_quick_and_leaves_nothing_out(span: Span, dtype: str, checkpoint: Checkpoint) -> None:
    """A span has the speeds of what it holds."""
    speed = measure(SpanEngine.load(checkpoint, span, dtype=dtype))
    assert (speed.decode_ms_per_block > 0) == (speed.prefill_ms_per_token_block > 0) == (span.start < 5)
    assert (speed.head_ms > 0) == (span.stop == 6)


def test_recurrent_models_can_be_measured(tiny: Tiny) -> None:
    """Without going back in the cache."""
    speed = measure(SpanEngine.load(Checkpoint.open(str(tiny("mamba"))), Span(0, 6), dtype="f32"))
    assert speed.decode_ms_per_block > 0


def test_a_fork_goes_on_as_a_session_of_its_own(engine: Engine) -> None:
    """And leaves the one that it came from as it was, whichever of them goes on first."""
    cache = engine.new_cache(engine.span)
    run_alone(engine, cache, 0, from_numpy(PROMPT), NOTHING)
    forks = [cache.fork(len(PROMPT)), cache.fork(5), cache]
    for tail, fork in enumerate(forks):
        found = run_alone(engine, fork, fork.length, ids(tail, 3), Want(top=0))
        alone = engine.new_cache(engine.span)
        run_alone(engine, alone, 0, from_numpy(PROMPT), NOTHING)
        expected = run_alone(engine, alone, fork.length - 2, ids(tail, 3), Want(top=0))
        assert isinstance(found, Candidates)
        assert isinstance(expected, Candidates)
        np.testing.assert_array_equal(logits_of(found), logits_of(expected))
    with pytest.raises(LocalProtocolError):
        cache.fork(cache.length + 1)
