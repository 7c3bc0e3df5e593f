"""Decoding from truncated candidates gives what decoding from the whole vocabulary gives."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from protocol import limits
from protocol.candidates import Want
from protocol.errors import ConfigError, LocalProtocolError
from swarm.decoding import Ask, Sampling, decode
from swarm.decoding.choose import choose_sampled
from swarm.decoding.row import read_row
from tests.swarm.decoding.reference import Logits, answer, make_model, probabilities, processed, run

SEEDS = st.integers(0, 2**32 - 1)
PENALTIES = st.sampled_from([0.5, 1.0, 1.3, 4.0])


def generate(prompt: list[int], **how: Any) -> tuple[list[int], str, list[Ask]]:
    model = how.pop("model")
    eos = how.pop("eos", frozenset())
    emitted, reason, asked = run(decode(prompt, eos=eos, **how), model, prompt)
    return [emit.token for emit in emitted], reason, asked


@settings(max_examples=60, deadline=None)
@given(seed=SEEDS, coarse=st.booleans(), penalty=PENALTIES, length=st.integers(1, 40))
def test_greedy_equals_the_dense_reference(seed: int, coarse: bool, penalty: float, length: int) -> None:
    """Token for token what transformers' penalty and argmax (lowest id of equals) give, in one ask each."""
    vocab_size = 60
    model = make_model(seed, vocab_size, coarse=coarse)
    prompt = np.random.default_rng(seed).integers(0, vocab_size, length).tolist()
    sampling = Sampling(repetition_penalty=penalty)
    tokens, _, asked = generate(
        prompt, model=model, sampling=sampling, max_new_tokens=12, vocab_size=vocab_size
    )
    expected = list(prompt)
    for _ in range(12):
        expected.append(int(np.argmax(processed(model(expected), expected, sampling))))
    assert tokens == expected[length:]
    assert len(asked) == 12


@settings(max_examples=60, deadline=None)
@given(
    seed=SEEDS,
    spread=st.sampled_from([0.01, 1.0, 4.0]),
    coarse=st.booleans(),
    penalty=PENALTIES,
    temperature=st.sampled_from([0.05, 0.7, 1.0, 2.5]),
    top_k=st.sampled_from([0, 1, 5, 50]),
    top_p=st.sampled_from([1.0, 0.95, 0.3]),
)
def test_truncated_candidates_draw_what_all_candidates_draw(
    seed: int, spread: float, coarse: bool, penalty: float, temperature: float, top_k: int, top_p: float
) -> None:
    """However many candidates come, the row settles on the same id or says that it cannot."""
    vocab_size = 400
    rng = np.random.default_rng(seed)
    logits = make_model(seed, vocab_size, spread, coarse)([1])
    window = tuple(sorted({*rng.integers(0, vocab_size, 9).tolist(), int(logits.argmax())}))
    sampling = Sampling(temperature, top_k, top_p, penalty)
    u = float(rng.random())

    def draw(top: int) -> int | None:
        want = Want(top=top, ids=window if top else (), temperature=temperature)
        row = read_row(answer(logits, want), want, window, sampling, vocab_size)
        choice = choose_sampled(row, sampling, u)
        return None if choice is None else choice.token

    whole = draw(0)
    assert whole is not None
    assert {draw(top) for top in (3, 20, 90, 399, 400)} <= {whole, None}


@settings(max_examples=80, deadline=None)
@given(
    seed=SEEDS,
    penalty=PENALTIES,
    temperature=st.sampled_from([0.3, 1.0, 1.7]),
    top_k=st.sampled_from([0, 1, 7, 500]),
    top_p=st.sampled_from([1.0, 0.9, 0.4, 0.001]),
    top=st.sampled_from([0, 30, 100]),
)
# The last of the best is in the window and rises: every entry then stands before all unseen ids.
@example(seed=2801720, penalty=0.5, temperature=1.7, top_k=0, top_p=1.0, top=100)
@example(seed=2801720, penalty=0.5, temperature=1.7, top_k=500, top_p=1.0, top=100)
def test_the_distribution_is_that_of_transformers(
    seed: int, penalty: float, temperature: float, top_k: int, top_p: float, top: int
) -> None:
    """Over a fine grid of draws, each id comes up with the probability that transformers' warpers give it."""
    vocab_size = 120
    logits = make_model(seed, vocab_size, 2.0)([seed % 97])
    history = np.random.default_rng(seed).integers(0, vocab_size, 6).tolist()
    sampling = Sampling(temperature, top_k, top_p, penalty)
    window = tuple(sorted(set(history))) if penalty != 1 else ()
    want = Want(top=top, ids=window if top else (), temperature=temperature)
    row = read_row(answer(logits, want), want, window, sampling, vocab_size)
    grid = (np.arange(400) + 0.5) / 400
    choices = [choose_sampled(row, sampling, float(u)) for u in grid]
    expected = probabilities(processed(logits, history, sampling))
    counts = np.zeros(vocab_size)
    unsure = 0
    for choice in choices:
        if choice is None:
            unsure += 1
        else:
            counts[choice.token] += 1
    assert top or not unsure
    # On a grid of 400 points a cell of probability p holds 400 p points, give or take one at each border.
    assert (counts <= 400 * expected + 1.01).all()
    assert (counts >= 400 * expected - 1.01 - unsure).all()


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(0.8, seed=5),
        Sampling(0.8, top_p=0.9, seed=5),
        Sampling(1.0, top_k=40, seed=5),
        Sampling(30.0, top_p=0.99, repetition_penalty=1.2, seed=5),
    ],
)
def test_the_seed_decides_the_text(sampling: Sampling) -> None:
    """The same seed gives the same tokens, another seed others; a flat distribution is asked for whole."""
    model = make_model(1, 5000)

    def text(seed: int) -> list[int]:
        how = Sampling(
            sampling.temperature, sampling.top_k, sampling.top_p, sampling.repetition_penalty, seed
        )
        return generate([1, 2, 3], model=model, sampling=how, max_new_tokens=30, vocab_size=5000)[0]

    assert text(5) == text(5)
    assert text(5) != text(6)


def test_a_flat_distribution_costs_one_ask_twice_then_one_each() -> None:
    """The first miss asks the same position again for everything; the next tokens ask that at once."""
    model = make_model(1, 5000)
    _, _, asked = generate(
        [1, 2, 3], model=model, sampling=Sampling(50.0, top_p=0.9, seed=0), max_new_tokens=4, vocab_size=5000
    )
    assert [ask.want.top for ask in asked] == [1024, 0, 0, 0, 0]
    assert [(ask.tokens, ask.position) for ask in asked[:2]] == [((1, 2, 3), 0), ((3,), 2)]


def test_usual_settings_ask_for_few_candidates() -> None:
    """A peaked distribution is settled from 1,024 candidates, even where nothing is cut off."""
    peaked: Logits = np.linspace(0, 40, 5000, dtype=np.float32) ** 2
    _, _, asked = generate(
        [7], model=lambda _: peaked, sampling=Sampling(1.0, seed=0), max_new_tokens=20, vocab_size=5000
    )
    assert [ask.want.top for ask in asked] == [1024] * 20


def test_cached_tokens_are_not_asked_again() -> None:
    """The first Ask starts where the caches end, and always holds the last prompt token."""
    for cached, expected in [(0, ((5, 6, 7), 0)), (2, ((7,), 2)), (3, ((7,), 2)), (9, ((7,), 2))]:
        step = decode(
            [5, 6, 7], cached=cached, sampling=Sampling(), eos=frozenset(), max_new_tokens=1, vocab_size=9
        )
        ask = next(step)
        assert isinstance(ask, Ask)
        assert (ask.tokens, ask.position, ask.want) == (*expected, Want(top=1))


def test_the_end_token_is_emitted_and_ends() -> None:
    """The reason is "eos" after the end token, "length" after the most tokens."""
    rising: Logits = np.arange(10, dtype=np.float32)
    how: dict[str, Any] = {"model": lambda _: rising, "sampling": Sampling(), "vocab_size": 10}
    assert generate([1], eos=frozenset({9}), max_new_tokens=5, **how)[:2] == ([9], "eos")
    assert generate([1], eos=frozenset({3}), max_new_tokens=2, **how)[:2] == ([9, 9], "length")
    assert generate([1], max_new_tokens=0, **how) == ([], "length", [])


def test_logprobs_are_those_of_the_model() -> None:
    """Emit.logprob is the log-softmax of logits / temperature, whatever the penalty."""
    model = make_model(3, 50)
    for sampling in (Sampling(), Sampling(repetition_penalty=2.0), Sampling(0.7, top_k=3, seed=1)):
        emitted, _, _ = run(
            decode([1, 2], sampling=sampling, eos=frozenset(), max_new_tokens=1, vocab_size=50), model, [1, 2]
        )
        shares = probabilities(model([1, 2]) / np.float32(sampling.divisor))
        assert emitted[0].logprob == pytest.approx(np.log(shares[emitted[0].token]), abs=1e-4)


def test_a_long_window_asks_for_the_whole_vocabulary() -> None:
    """Above the protocol's limit of asked ids nothing is asked by name."""
    prompt = list(range(limits.ASKED_IDS + 1))
    step = decode(
        prompt, sampling=Sampling(repetition_penalty=1.1), eos=frozenset(), max_new_tokens=1, vocab_size=9000
    )
    ask = next(step)
    assert isinstance(ask, Ask)
    assert ask.want == Want(top=0)


def test_prompts_that_cannot_be() -> None:
    """An empty prompt or a foreign id is the user's mistake, told in one line."""
    for prompt in ([], [10], [-1]):
        with pytest.raises(ConfigError):
            next(decode(prompt, sampling=Sampling(), eos=frozenset(), max_new_tokens=1, vocab_size=10))


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -1.0},
        {"temperature": float("nan")},
        {"temperature": 1e-9},
        {"top_k": -1},
        {"top_p": 0.0},
        {"top_p": 1.5},
        {"repetition_penalty": 0.0},
        {"repetition_penalty": float("inf")},
        {"seed": -1},
    ],
)
def test_sampling_out_of_range(wrong: dict[str, Any]) -> None:
    """One clear line that names the setting."""
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        Sampling(**wrong)


def test_an_ask_without_an_answer_is_our_bug() -> None:
    """Sending None for an Ask fails loudly."""
    step = decode([1], sampling=Sampling(), eos=frozenset(), max_new_tokens=1, vocab_size=10)
    next(step)
    with pytest.raises(LocalProtocolError):
        step.send(None)
