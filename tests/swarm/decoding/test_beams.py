"""Beam search finds what transformers' finds; best-of-n draws what single answers would draw."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.errors import ConfigError
from swarm.decoding import Ask, BeamSearch, BestOf, OutOfTime, Sample, Sampling, Task, Token
from tests.swarm.decoding.oracle import generate
from tests.swarm.decoding.reference import Run, make_model, processors, run

VOCAB = 60
PROMPT = [5, 6, 5, 7]
SEEDS = st.integers(0, 2**32 - 1)
CHAINS = st.fixed_dictionaries(
    {},
    optional={
        "repetition_penalty": st.sampled_from([0.7, 1.3]),
        "presence_penalty": st.just(0.5),
        "no_repeat_ngram": st.integers(1, 3),
        "logit_bias": st.just({9: 2.0, 11: -3.0}),
        "banned": st.just({4, 8}),
        "min_new_tokens": st.just(3),
    },
)


@settings(max_examples=150, deadline=None)
@given(
    seed=SEEDS,
    beams=st.integers(2, 5),
    length_penalty=st.sampled_from([-1.0, 0.0, 0.6, 1.0, 2.0]),
    early_stopping=st.sampled_from([False, True, "never"]),
    eos=st.sampled_from([frozenset(), frozenset({1}), frozenset({1, 2, 3, 9})]),
    chain=CHAINS,
    data=st.data(),
)
def test_beams_equal_transformers(
    seed: int, beams: int, length_penalty: float, early_stopping: Any, eos: frozenset[int], chain: dict[str, Any],
    data: st.DataObject,
) -> None:  # fmt: skip
    """The same sequences in the same order with the same scores, with processors and several ends."""
    model = make_model(seed, VOCAB, 2.0)
    sampling = Sampling(**chain)
    returned = data.draw(st.integers(1, beams))
    how = BeamSearch(beams, length_penalty, early_stopping, returned)
    found = run(how.decode(Task(PROMPT, VOCAB, 9, sampling, eos)), model, PROMPT)
    texts, scores = generate(
        model,
        VOCAB,
        PROMPT,
        processors(sampling, len(PROMPT), eos),
        num_beams=beams,
        length_penalty=length_penalty,
        early_stopping=early_stopping,
        num_return_sequences=returned,
        max_new_tokens=9,
        do_sample=False,
        eos_token_id=sorted(eos) or None,
    )
    others = [[token.id for token in each.tokens] for each in found.ending.others]
    assert [found.ids, *others] == texts
    assert [found.ending.score, *(each.score for each in found.ending.others)] == pytest.approx(
        scores, abs=1e-4
    )


def test_beams_fork_and_ask_for_one_token_each() -> None:
    """The prompt is run once; every later ask has one token, on a branch that has all before it."""
    found = run(BeamSearch(4).decode(Task(PROMPT, VOCAB, 12)), make_model(3, VOCAB), PROMPT)
    first, *later = found.together
    assert [ask.tokens for ask in first.asks] == [tuple(PROMPT)]
    assert all(len(said.asks) == 4 and all(len(ask.tokens) == 1 for ask in said.asks) for said in later)
    forked = [ask for said in later for ask in said.asks if ask.parent is not None]
    dropped = [branch for said in later for branch in said.dropped]
    assert len({ask.branch for ask in forked}) == len(forked)
    # Branch 0 stays, whoever is on it.
    assert len(forked) - 3 <= len(dropped) <= len(forked)


def test_what_all_beams_share_is_given_at_once() -> None:
    """A token comes as soon as nothing else can become the answer, not only in the end."""
    found = run(BeamSearch(2).decode(Task(PROMPT, VOCAB, 20)), make_model(8, VOCAB, 6.0), PROMPT)
    last = len(found.together)
    assert sum(step < last for step in found.steps_before) > 5


def cut_short(strategy: Any, steps: int, prompt: list[int]) -> Run:
    """Run a strategy, and tell it after so many steps that there is no time."""
    model = make_model(4, VOCAB)

    def limited() -> Any:
        told, left, throw = None, steps, False
        while True:
            try:
                said = strategy.throw(OutOfTime()) if throw else strategy.send(told)
            except StopIteration as end:
                return end.value
            throw, left = left == 0 and not isinstance(said, Token), left - (not isinstance(said, Token))
            told = None if throw else (yield said)

    return run(limited(), model, prompt)


@pytest.mark.parametrize(
    ("how", "sampling"),
    [(BeamSearch(3), Sampling()), (BestOf(3), Sampling(1.0, seed=1))],
    ids=["beams", "best"],
)
def test_out_of_time_the_best_so_far_is_given(how: BeamSearch | BestOf, sampling: Sampling) -> None:
    """As far as it came; nothing at all before the first token."""
    found = cut_short(how.decode(Task(PROMPT, VOCAB, 50, sampling)), 6, PROMPT)
    assert (len(found.ids), found.ending.reason) == (6, "time")
    with pytest.raises(OutOfTime):
        cut_short(how.decode(Task(PROMPT, VOCAB, 50, sampling)), 0, PROMPT)


@pytest.mark.parametrize("temperature", [0.8, 60.0])
def test_best_of_is_several_answers_side_by_side(temperature: float) -> None:
    """The first is what sampling draws with that seed; the best mean log-probability comes first; ends are theirs.

    Also where the usual candidates settle nothing and everything is asked for.
    """
    vocab_size, eos = 4000, frozenset(range(3500, 4000))
    model = make_model(6, vocab_size)
    sampling = Sampling(temperature, top_p=0.97, seed=4)
    task = Task(PROMPT, vocab_size, 12, sampling, eos)
    single = run(Sample().decode(task), model, PROMPT)
    found = run(BestOf(5).decode(task), model, PROMPT)
    lines = [tuple(found.tokens), *(each.tokens for each in found.ending.others)]
    assert tuple(single.tokens) in lines
    assert len(set(lines)) == 5
    means = [float(np.mean([token.logprob for token in line])) for line in lines]
    assert means == sorted(means, reverse=True)
    assert means == pytest.approx([found.ending.score, *(each.score for each in found.ending.others)])
    assert all(not eos & {token.id for token in line[:-1]} for line in lines)
    assert sum(len(ask.tokens) for ask in found.asked if ask.parent is None and ask.position == 0) == len(
        PROMPT
    )


@pytest.mark.parametrize(
    ("kind", "wrong"),
    [
        (BeamSearch, {"beams": 0}),
        (BeamSearch, {"beams": 1000}),
        (BeamSearch, {"beams": 2, "returned": 3}),
        (BeamSearch, {"length_penalty": float("nan")}),
        (BeamSearch, {"early_stopping": "soon"}),
        (BestOf, {"answers": 0}),
        (BestOf, {"answers": 100}),
    ],
)
def test_parameters_out_of_range(kind: Any, wrong: dict[str, Any]) -> None:
    """One clear line that names the parameter."""
    with pytest.raises(ConfigError, match=[*wrong][-1]):
        kind(**wrong)


def test_a_beam_alone_is_greedy() -> None:
    """One beam takes the best token each time."""
    model = make_model(9, VOCAB)
    tokens = list(PROMPT)
    for _ in range(6):
        tokens.append(int(np.argmax(model(tokens))))
    found = run(BeamSearch(1).decode(Task(PROMPT, VOCAB, 6)), model, PROMPT)
    assert found.ids == tokens[len(PROMPT) :]
    assert all(isinstance(ask, Ask) for ask in found.asked)
