"""The native engine as a node uses it: steps, going back, what strangers send, spans in a row."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from node.compute.call import run_alone
from node.compute.interfaces import Call, StepResult
from node.compute.measure import measure
from node.native import build
from node.native.checkpoint import NativeCheckpoint
from node.native.engine import NativeEngine
from node.native.kernel import Kernel
from node.native.load import ISA_VARIABLE, load_kernel
from node.native.precision import PRECISIONS
from protocol.candidates import NOTHING, Candidates, Want
from protocol.errors import ConfigError, LocalProtocolError, Malformed
from protocol.model import Span
from protocol.tensors import Tensor, from_numpy

TINY = Path("swarm/models/tiny")
STAGES = 10
WHOLE = Span(0, STAGES)
PROMPT = np.arange(5, 300, 7, dtype=np.int32)


def engine(kernel: Kernel, precision: str = "f32", span: Span = WHOLE) -> NativeEngine:
    """The model that ships."""
    return NativeEngine.load(NativeCheckpoint.open(str(TINY), PRECISIONS[precision]), span, kernel)


def greedy(engines: list[NativeEngine], tokens: int) -> list[int]:
    """The prompt continued through spans in a row."""
    caches = [each.new_cache(each.span) for each in engines]
    given, found = from_numpy(PROMPT), list[int]()
    while len(found) < tokens:
        out: Tensor | Candidates | None = given
        for each, cache in zip(engines, caches, strict=True):
            assert isinstance(out, Tensor)
            out = run_alone(each, cache, cache.length, out, Want(top=1))
        assert isinstance(out, Candidates)
        found.append(int(out.ids[0, 0]))
        given = from_numpy(out.ids[0])
    return found


def bits(given: StepResult | Exception) -> object:
    """What there is to compare of a result."""
    if isinstance(given, Tensor):
        return bytes(given.data)
    if isinstance(given, Candidates):
        return [array.tobytes() for array in (given.ids, given.logits, given.lse, given.asked)]
    return type(given)


def test_the_model_that_ships_says_what_transformers_says(kernel: Kernel) -> None:
    """Greedily, in f32."""
    model = AutoModelForCausalLM.from_pretrained(TINY).eval()
    prompt = torch.from_numpy(PROMPT.astype(np.int64))[None]
    model.generation_config.eos_token_id = None
    out = model.generate(prompt, do_sample=False, max_new_tokens=64)
    assert greedy([engine(kernel)], 64) == out[0, len(PROMPT) :].tolist()


@pytest.mark.parametrize("precision", PRECISIONS)
def test_spans_in_a_row_say_what_the_whole_says(precision: str, kernel: Kernel) -> None:
    """In each precision, the ends alone too."""
    parts = [engine(kernel, precision, span) for span in (Span(0, 1), Span(1, 4), Span(4, 9), Span(9, 10))]
    assert greedy(parts, 32) == greedy([engine(kernel, precision)], 32)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_calls_together_give_the_bits_of_each_alone(precision: str, kernel: Kernel) -> None:
    """Decode steps and chunks, over different spans, and what cannot be changes nothing for the others."""
    whole = engine(kernel, precision)
    wants = (
        Want(top=3),
        NOTHING,
        Want(top=0, every=True),
        Want(ids=(7, 0), temperature=0.5),
        Want(top=1),
        NOTHING,
    )
    spans = (WHOLE, Span(0, 5), WHOLE, WHOLE, WHOLE, Span(0, 5))
    rows = ([7], PROMPT[:20], PROMPT[3:8], [9], [9999], [5])

    def calls() -> list[Call]:
        made = []
        for span, some, want in zip(spans, rows, wants, strict=True):
            cache = whole.new_cache(span, 64)
            run_alone(whole, cache, 0, from_numpy(PROMPT[:9]), NOTHING)
            made.append(Call(cache, 7, from_numpy(np.array(some, np.int32)), want))
        return made

    together = whole.run(calls())
    alone = [given for call in calls() for given in whole.run([call])]
    assert [type(given) for given in together] == [
        Candidates,
        Tensor,
        Candidates,
        Candidates,
        Malformed,
        Tensor,
    ]
    assert [bits(given) for given in together] == [bits(given) for given in alone]


def test_a_head_that_overflows_fails_its_call_only(kernel: Kernel) -> None:
    """States so large that there are no logits, beside a call that asks for every row."""
    end = engine(kernel, "f32", Span(9, 10))
    states = np.ones((18, 128), np.float32)
    # The last norm makes the sizes of all states alike, so what overflows is the temperature's doing.
    calls = [
        Call(end.new_cache(end.span), 0, from_numpy(states), Want(top=1, every=True, temperature=temperature))
        for temperature in (1.0, 1e-38, 2.0)
    ]
    given = end.run(calls)
    assert [type(each) for each in given] == [Candidates, Malformed, Candidates]
    assert bits(given[2]) == bits(run_alone(end, calls[2].cache, 0, calls[2].inputs, calls[2].want))


def test_every_object_continues_the_same_answer(
    kernel: Kernel, isas: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two hops of int8, each time on other instructions: the logits are the same bits."""
    found = set()
    for isa in isas:
        monkeypatch.setenv(ISA_VARIABLE, isa)
        parts = [engine(load_kernel(2), "int8", Span(0, 5)), engine(kernel, "int8", Span(5, 10))]
        caches = [each.new_cache(each.span, 64) for each in parts]
        hidden = run_alone(parts[0], caches[0], 0, from_numpy(PROMPT), NOTHING)
        assert isinstance(hidden, Tensor)
        out = run_alone(parts[1], caches[1], 0, hidden, Want(top=0))
        assert isinstance(out, Candidates)
        found.add((out.logits.tobytes(), out.lse.tobytes()))
    assert len(found) == 1


def test_a_step_at_an_earlier_position_forgets_what_came_after(kernel: Kernel) -> None:
    """The same step again gives the same candidates."""
    whole = engine(kernel, "int8")
    cache = whole.new_cache(WHOLE, 64)
    run_alone(whole, cache, 0, from_numpy(PROMPT[:20]), NOTHING)
    first = run_alone(whole, cache, 20, from_numpy(PROMPT[20:30]), Want(top=5, every=True))
    run_alone(whole, cache, 12, from_numpy(PROMPT[30:34]), NOTHING)
    assert cache.length == 16
    run_alone(whole, cache, 12, from_numpy(PROMPT[12:20]), NOTHING)
    again = run_alone(whole, cache, 20, from_numpy(PROMPT[20:30]), Want(top=5, every=True))
    assert isinstance(first, Candidates)
    assert isinstance(again, Candidates)
    assert np.array_equal(first.logits, again.logits)
    assert np.array_equal(first.ids, again.ids)


def test_candidates_are_what_was_wanted(kernel: Kernel) -> None:
    """Falling logits, the asked ids, and a normaliser that is numpy's to the last digits."""
    whole = engine(kernel)
    cache = whole.new_cache(WHOLE)
    want = Want(top=7, ids=(3, 400, 3), every=True, temperature=0.7)
    out = run_alone(whole, cache, 0, from_numpy(PROMPT), want)
    every = run_alone(whole, cache, 0, from_numpy(PROMPT), Want(top=0, every=True))
    assert isinstance(out, Candidates)
    assert isinstance(every, Candidates)
    assert out.ids.shape == (len(PROMPT), 7)
    assert np.array_equal(out.ids, every.ids[:, :7])
    assert (np.diff(every.logits, axis=1) <= 0).all()
    assert np.array_equal(np.sort(every.ids, axis=1)[0], np.arange(403))
    plain = np.take_along_axis(every.logits, np.argsort(every.ids, axis=1), 1)
    assert np.array_equal(out.asked, plain[:, [3, 400, 3]])
    scaled = plain.astype(np.float64) / np.float32(0.7)
    assert np.allclose(out.lse, np.log(np.exp(scaled).sum(1)), rtol=1e-6)


@pytest.mark.parametrize(
    ("position", "inputs"),
    [
        (0, from_numpy(np.array([-1], np.int32))),
        (0, from_numpy(np.array([403], np.int32))),
        (0, from_numpy(np.zeros(0, np.int32))),
        (0, from_numpy(np.zeros((2, 128), np.float32))),
        (1, from_numpy(PROMPT)),
        (-1, from_numpy(PROMPT)),
        (0, from_numpy(np.zeros(513, np.int32))),
    ],
)
def test_inputs_that_cannot_be_are_malformed(position: int, inputs: Tensor, kernel: Kernel) -> None:
    """Ids, shapes and positions; the cache stays as it was."""
    whole = engine(kernel)
    cache = whole.new_cache(WHOLE)
    with pytest.raises(Malformed):
        run_alone(whole, cache, position, inputs, NOTHING)
    assert cache.length == 0


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_states_that_are_no_numbers_are_malformed(bad: float, kernel: Kernel) -> None:
    """Nothing that is not finite reaches the kernels."""
    middle = engine(kernel, "int8", Span(3, 6))
    states = np.ones((3, 128), np.float32)
    states[1, 7] = bad
    with pytest.raises(Malformed):
        run_alone(middle, middle.new_cache(Span(3, 6)), 0, from_numpy(states), NOTHING)


def test_a_cache_takes_pages_as_it_grows_and_gives_them_back(kernel: Kernel) -> None:
    """The last of a bounded session is a smaller one."""
    middle = engine(kernel, "int8", Span(3, 6))
    cache = middle.new_cache(Span(3, 5), 300)
    assert cache.table.shape == (2, 0)
    states = from_numpy(np.ones((250, 128), np.float32))
    run_alone(middle, cache, 0, states, NOTHING)
    assert cache.table.shape == (2, 1)
    run_alone(middle, cache, 250, states.row_slice(0, 50), NOTHING)
    assert cache.table.shape == (2, 2)
    row_bytes = middle.kv_bytes_per_token() // 3
    assert middle._pages.used_bytes == 2 * row_bytes * (256 + 64)
    cache.close()
    cache.close()
    assert cache.length == 0
    assert middle._pages.used_bytes == 0
    with pytest.raises(LocalProtocolError):
        middle.new_cache(Span(2, 5))


def test_its_speed_can_be_measured(kernel: Kernel) -> None:
    """As the daemon does before it announces anything."""
    speed = measure(engine(kernel, "int8"))
    assert speed.decode_ms_per_block > 0
    assert speed.head_ms > 0


def test_without_objects_it_says_how_to_make_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No compiler: one line while building, one when somebody asks for the kernels."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CC", "no-such-compiler")
    said: list[str] = []
    assert build.build(tmp_path / "built", said.append) == []
    assert said == ["native kernels: left out, there is no C compiler here that builds them"]
    monkeypatch.setattr(build, "BUILT", tmp_path / "built")
    with pytest.raises(ConfigError, match=r"node\.native\.build"):
        load_kernel(1)


def test_an_isa_that_is_not_there_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing else is taken instead."""
    monkeypatch.setenv(ISA_VARIABLE, "altivec")
    with pytest.raises(ConfigError, match="altivec"):
        load_kernel(1)


def test_an_object_that_computes_otherwise_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here every object, since the answers have changed."""
    from node.native import known_answer, load

    load.usable_object.cache_clear()
    monkeypatch.setattr(known_answer, "ANSWERS", dict.fromkeys(known_answer.ANSWERS, "another answer"))
    try:
        with pytest.raises(ConfigError, match="no native kernels"):
            load_kernel(1)
    finally:
        load.usable_object.cache_clear()
