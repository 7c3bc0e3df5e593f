"""One sequence at a time: what is asked, what is given, and when it ends."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol import limits
from protocol.candidates import Want
from protocol.errors import ConfigError, LocalProtocolError
from swarm.decoding import (
    Ask,
    BeamSearch,
    BestOf,
    Greedy,
    Sample,
    Sampling,
    Speculative,
    Strategy,
    Task,
    choose_strategy,
)
from swarm.decoding.chooser import Chooser
from tests.swarm.decoding.reference import Logits, Run, make_model, probabilities, processed, run

SEEDS = st.integers(0, 2**32 - 1)
PENALTIES = st.sampled_from([0.5, 1.0, 1.3, 4.0])


def generate(prompt: list[int], sampling: Sampling | None = None, **how: Any) -> Run:
    """Drive greedy decoding or sampling over `model`."""
    model = how.pop("model")
    sampling = sampling or Sampling()
    task = Task(prompt, sampling=sampling, **how)
    return run(Greedy().decode(task), model, prompt)  # token by token, drawn too if the settings say so


@settings(max_examples=60, deadline=None)
@given(seed=SEEDS, coarse=st.booleans(), penalty=PENALTIES, length=st.integers(1, 40))
def test_greedy_equals_the_dense_reference(seed: int, coarse: bool, penalty: float, length: int) -> None:
    """Token for token what transformers' penalty and argmax (lowest id of equals) give, in one ask each."""
    vocab_size = 60
    model = make_model(seed, vocab_size, coarse=coarse)
    prompt = np.random.default_rng(seed).integers(0, vocab_size, length).tolist()
    sampling = Sampling(repetition_penalty=penalty)
    found = generate(prompt, sampling, model=model, max_new_tokens=12, vocab_size=vocab_size)
    expected = list(prompt)
    for _ in range(12):
        expected.append(int(np.argmax(processed(model(expected), expected, sampling))))
    assert found.ids == expected[length:]
    assert len(found.asked) == 12


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(0.8, seed=5),
        Sampling(0.8, top_p=0.9, seed=5),
        Sampling(1.0, top_k=40, seed=5),
        Sampling(1.0, min_p=0.02, seed=5),
        Sampling(0.9, typical_p=0.9, seed=5),
        Sampling(30.0, top_p=0.99, repetition_penalty=1.2, seed=5),
    ],
)
def test_the_seed_decides_the_text(sampling: Sampling) -> None:
    """The same seed gives the same tokens, another seed others; a flat distribution is asked for whole."""
    model = make_model(1, 5000)

    def text(seed: int) -> list[int]:
        how = replace(sampling, seed=seed)
        return generate([1, 2, 3], how, model=model, max_new_tokens=30, vocab_size=5000).ids

    assert text(5) == text(5)
    assert text(5) != text(6)


def test_a_place_that_is_come_to_again_has_the_same_draw() -> None:
    """What is drawn there follows from the seed and from how many tokens were chosen before."""
    task = Task([1, 2], 50, 9, Sampling(1.0, seed=3))
    chooser, other = Chooser(task), Chooser(task)
    draws = [chooser.place([1, 2, *range(length)]).u for length in (0, 1, 2, 5, 1)]
    assert draws[1] == draws[4]
    assert [other.place([1, 2, *range(length)]).u for length in (5, 2, 1, 0)] == [
        draws[i] for i in (3, 2, 1, 0)
    ]
    assert len({*draws}) == 4


def test_a_flat_distribution_costs_one_ask_twice_then_one_each() -> None:
    """The first miss asks the same position again for everything; the next tokens ask that at once."""
    model = make_model(1, 5000)
    asked = generate(
        [1, 2, 3], Sampling(50.0, top_p=0.9, seed=0), model=model, max_new_tokens=4, vocab_size=5000
    ).asked
    assert [ask.want.top for ask in asked] == [1024, 0, 0, 0, 0]
    assert [(ask.tokens, ask.position) for ask in asked[:2]] == [((1, 2, 3), 0), ((3,), 2)]


def peaked(_: object) -> Logits:
    """A few good ids."""
    found: Logits = np.linspace(0, 40, 5000, dtype=np.float32) ** 2
    return found


@pytest.mark.parametrize(
    ("sampling", "top", "ids"),
    [
        (Sampling(), 1, 0),
        (Sampling(1.0), 1024, 0),
        (Sampling(1.0, top_p=0.9, typical_p=0.9), 1024, 0),
        (Sampling(1.0, min_p=0.1, banned={1, 2}), 1026, 2),
        (Sampling(1.0, top_k=20), 52, 0),
        (Sampling(1.0, typical_p=0.9), 0, 0),
        (Sampling(repetition_penalty=1.1), 2, 1),
        (Sampling(allowed={3, 4, 5}, banned={3, 9}), 1, 3),
        (Sampling(1.0, allowed={3, 4, 5}), 1024, 3),
        (Sampling(banned=range(4500)), 0, 0),
    ],
)
def test_what_is_asked_follows_from_the_processors(sampling: Sampling, top: int, ids: int) -> None:
    """As few of the best as settle it, and the ids that a processor touches by name; in one ask for each token."""
    sampling = replace(sampling, seed=0)
    found = generate([7], sampling, model=peaked, max_new_tokens=1, vocab_size=5000)
    assert [(ask.want.top, len(ask.want.ids)) for ask in found.asked] == [(top, ids)]


def test_cached_tokens_are_not_asked_again() -> None:
    """The first Ask starts where the caches end, and always holds the last prompt token."""
    for cached, expected in [(0, ((5, 6, 7), 0)), (2, ((7,), 2)), (3, ((7,), 2)), (9, ((7,), 2))]:
        ask = next(Greedy().decode(Task([5, 6, 7], vocab_size=9, max_new_tokens=1, cached=cached)))
        assert isinstance(ask, Ask)
        assert (ask.tokens, ask.position, ask.want) == (*expected, Want(top=1))


def test_the_end_token_is_given_and_ends() -> None:
    """The reason is "eos" after the end token, "length" after the most tokens."""
    rising: Logits = np.arange(10, dtype=np.float32)
    how: dict[str, Any] = {"model": lambda _: rising, "vocab_size": 10}
    ended = generate([1], eos=frozenset({9}), max_new_tokens=5, **how)
    assert (ended.ids, ended.ending.reason) == ([9], "eos")
    cut = generate([1], eos=frozenset({3}), max_new_tokens=2, **how)
    assert (cut.ids, cut.ending.reason) == ([9, 9], "length")
    kept = generate([1], Sampling(min_new_tokens=3), eos=frozenset({9}), max_new_tokens=5, **how)
    assert (kept.ids, kept.ending.reason) == ([8, 8, 8, 9], "eos")


def test_logprobs_are_those_of_the_model() -> None:
    """Those of logits / temperature, whatever the processors; and as many of the best as were asked for."""
    model = make_model(3, 50)
    for sampling in (
        Sampling(),
        Sampling(repetition_penalty=2.0),
        Sampling(0.7, top_k=3, seed=1),
        Sampling(allowed={4, 5}),
        Sampling(1.0, typical_p=0.5, seed=1),
    ):
        found = generate([1, 2], sampling, model=model, max_new_tokens=1, vocab_size=50, top_logprobs=5)
        shares = np.log(probabilities(model([1, 2]) / np.float32(sampling.divisor)))
        [token] = found.tokens
        assert token.logprob == pytest.approx(shares[token.id], abs=1e-4)
        assert [best for best, _ in token.best] == np.argsort(-shares)[:5].tolist()
        assert [logprob for _, logprob in token.best] == pytest.approx(np.sort(shares)[::-1][:5], abs=1e-4)


def test_a_long_window_asks_for_the_whole_vocabulary() -> None:
    """Above the protocol's limit of asked ids nothing is asked by name."""
    prompt = list(range(limits.ASKED_IDS + 1))
    ask = next(Greedy().decode(Task(prompt, 9000, 1, Sampling(repetition_penalty=1.1))))
    assert isinstance(ask, Ask)
    assert ask.want == Want(top=0)


def test_prompts_that_cannot_be() -> None:
    """An empty prompt or a foreign id is the user's mistake, told in one line; so is a setting's."""
    for prompt in ([], [10], [-1]):
        with pytest.raises(ConfigError):
            Task(prompt, vocab_size=10, max_new_tokens=1)
    for sampling in (Sampling(banned={10}), Sampling(allowed={-1}), Sampling(logit_bias={11: 1.0})):
        with pytest.raises(ConfigError, match="vocabulary"):
            Task([1], vocab_size=10, max_new_tokens=1, sampling=sampling)


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(allowed={3}, banned={3}),
        Sampling(banned=range(10)),
        Sampling(1.0, allowed=lambda tokens: ()),
        Sampling(allowed={2}, min_new_tokens=1),
    ],
)
def test_where_nothing_is_left(sampling: Sampling) -> None:
    """That is told in one line, and no token is made up."""
    model = make_model(3, 10)
    with pytest.raises(ConfigError, match="allowed"):
        generate([1], sampling, model=model, max_new_tokens=1, vocab_size=10, eos=frozenset({2}))


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -1.0},
        {"temperature": float("nan")},
        {"temperature": 1e-9},
        {"top_k": -1},
        {"top_p": 0.0},
        {"top_p": 1.5},
        {"min_p": -0.1},
        {"min_p": float("nan")},
        {"typical_p": 0.0},
        {"repetition_penalty": 0.0},
        {"repetition_penalty": float("inf")},
        {"presence_penalty": float("nan")},
        {"frequency_penalty": float("inf")},
        {"no_repeat_ngram": -1},
        {"logit_bias": {3: float("inf")}},
        {"allowed": ()},
        {"min_new_tokens": -1},
        {"seed": -1},
    ],
)
def test_sampling_out_of_range(wrong: dict[str, Any]) -> None:
    """One clear line that names the setting."""
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        Sampling(**wrong)


def test_strategies_refuse_settings_that_say_nothing_to_them() -> None:
    """In one line that names the setting; unknown names are told what there is."""
    assert choose_strategy("auto", Sampling()) == choose_strategy("auto", Sampling(0.5)) == Speculative()
    refused: list[tuple[Strategy, float]] = [
        (Greedy(), 0.5),
        (BeamSearch(), 0.5),
        (Sample(), 0.0),
        (BestOf(), 0.0),
    ]
    for strategy, temperature in refused:
        with pytest.raises(ConfigError, match="temperature"):
            choose_strategy(strategy, Sampling(temperature))
    with pytest.raises(ConfigError, match="beam_search"):
        choose_strategy("beams", Sampling())


def test_an_ask_without_an_answer_is_our_bug() -> None:
    """Sending None for an Ask fails loudly."""
    step = Greedy().decode(Task([1], vocab_size=10, max_new_tokens=1))
    next(step)
    with pytest.raises(LocalProtocolError):
        step.send(None)
