"""Several tokens for each step: the very tokens that come without, in fewer steps, and never in more than pay."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import count
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol import limits
from protocol.errors import ConfigError
from swarm.decoding import DRAFT, Greedy, Sampling, Speculative, Strategy, Task
from swarm.decoding.pace import Pace
from swarm.decoding.runs import Runs
from tests.swarm.decoding.reference import Logits, Model, Run, make_model, run

VOCAB = 60
PLAIN = Greedy()  # token by token, as the settings say
SEEDS = st.integers(0, 2**32 - 1)
SETTINGS = st.builds(
    Sampling,
    temperature=st.sampled_from([0.0, 0.3, 1.0]),
    top_k=st.sampled_from([0, 5]),
    top_p=st.sampled_from([1.0, 0.8]),
    repetition_penalty=st.sampled_from([1.0, 1.3]),
    frequency_penalty=st.sampled_from([0.0, 0.4]),
    no_repeat_ngram=st.sampled_from([0, 4]),
    min_new_tokens=st.sampled_from([0, 5]),
    banned=st.sampled_from([(), (3, 4)]),
    seed=st.just(7),
)


def steps_that_cost_the_same() -> Callable[[], float]:
    """Whatever is asked takes a second, so drafts are worth a lot."""
    seconds = count()
    return lambda: float(next(seconds))


def tokens_of(strategy: Strategy, sampling: Sampling, model: Model, **how: Any) -> Run:
    """Thirty tokens after a prompt that repeats itself."""
    prompt = [5, 6, 7, 8, 5, 6, 7, 8, 5, 6]
    draft: Model | None = how.pop("draft", None)
    task = Task(prompt, VOCAB, 30, sampling, frozenset({1}), clock=steps_that_cost_the_same(), **how)
    return run(strategy.decode(task), model, prompt, draft)


@settings(max_examples=80, deadline=None)
@given(seed=SEEDS, sampling=SETTINGS, run_length=st.sampled_from([2, 4]), best=st.integers(0, 3))
def test_the_tokens_are_those_that_come_without(
    seed: int, sampling: Sampling, run_length: int, best: int
) -> None:
    """Greedy and drawn, with every processor in force, log-probabilities and the end included."""
    model = make_model(seed, VOCAB)
    plain = tokens_of(PLAIN, sampling, model, top_logprobs=best)
    found = tokens_of(Speculative(run=run_length), sampling, model, top_logprobs=best)
    assert found.ids == plain.ids
    assert found.ending == plain.ending
    for one, other in zip(found.tokens, plain.tokens, strict=True):
        assert one.logprob == pytest.approx(other.logprob, abs=1e-5)
        assert [each[0] for each in one.best] == [each[0] for each in other.best]


@settings(max_examples=40, deadline=None)
@given(seed=SEEDS, other=st.booleans(), sampling=SETTINGS)
def test_a_model_drafts_and_decides_nothing(seed: int, other: bool, sampling: Sampling) -> None:
    """Whether it says what the model says or something else."""
    model = make_model(seed, VOCAB)
    draft = make_model(seed + other, VOCAB)
    plain = tokens_of(PLAIN, sampling, model)
    found = tokens_of(Speculative(), sampling, model, draft=draft, draft_vocab=VOCAB)
    assert found.ids == plain.ids
    steps = [ask for ask in found.asked if ask.branch != DRAFT]
    if sampling == Sampling(seed=7) and not other and len(plain.ids) > 20:
        assert len(steps) < len(plain.ids) / 2


def test_what_repeats_takes_few_trips() -> None:
    """A model that goes in circles is drafted by what it said before."""

    found = tokens_of(Speculative(), Sampling(), in_a_circle)
    assert found.ids == [7, 8, *[5, 6, 7, 8] * 7]
    assert len(found.asked) <= 7
    assert max(len(ask.tokens) for ask in found.asked[1:]) > 8


def test_a_draft_after_which_nothing_may_follow_ends_there() -> None:
    """What is allowed is asked for tokens that the model has not said: that it allows nothing ends no answer."""

    def allowed(tokens: Sequence[int]) -> tuple[int, ...]:
        return () if tokens[-1] == 8 else (5, 6, 7)

    sampling = Sampling(allowed=allowed)
    model = make_model(3, VOCAB)
    assert tokens_of(Speculative(), sampling, model).ids == tokens_of(PLAIN, sampling, model).ids


def in_a_circle(tokens: Sequence[int]) -> Logits:
    """A model that says 5 6 7 8 for ever."""
    logits = np.zeros(VOCAB, np.float32)
    logits[{5: 6, 6: 7, 7: 8, 8: 5}[tokens[-1]]] = 9
    return logits


def test_drafting_goes_on_while_steps_are_under_way() -> None:
    """As long as all that was guessed held, and no further than that."""
    for ahead in (1, 3):
        how, sampling = Speculative(drafts=4, ahead=ahead), Sampling()
        found = tokens_of(how, sampling, in_a_circle)
        assert found.ids == tokens_of(PLAIN, sampling, in_a_circle).ids
        assert found.most_begun == ahead
    assert tokens_of(Speculative(drafts=4), Sampling(), make_model(1, VOCAB)).most_begun == 1


def test_where_layers_keep_a_state_nothing_is_drafted() -> None:
    """Each step has one row, as without; also where that is heard of in the middle."""
    answers = iter([True] * 3)
    for goes_back in (lambda: False, lambda: next(answers, False)):
        found = tokens_of(Speculative(drafts=4), Sampling(), in_a_circle, goes_back=goes_back)
        assert found.ids == tokens_of(PLAIN, Sampling(), in_a_circle).ids
        assert {len(ask.tokens) for ask in found.asked[10:]} == {1}


def test_a_draft_is_no_longer_than_one_answer_holds() -> None:
    """A hop sends no more candidates at once: 32 rows of a thousand do not fit."""
    vocab, most = 4000, Speculative(drafts=32, ahead=2)

    def model(tokens: Sequence[int]) -> Logits:
        logits = np.zeros(vocab, np.float32)
        logits[{5: 6, 6: 7, 7: 8, 8: 5}.get(tokens[-1], 5)] = 30
        return logits

    task = Task([5, 6, 7, 8] * 4, vocab, 150, Sampling(1.0, seed=1), clock=steps_that_cost_the_same())
    found = run(most.decode(task), model, task.prompt)
    assert len(found.asked) < 40
    for ask in found.asked:
        assert (len(ask.tokens) if ask.want.every else 1) * 8 * (ask.want.top or vocab) <= limits.ANSWER_BYTES


@pytest.mark.parametrize(
    ("field", "value"), [("drafts", 0), ("drafts", 33), ("run", 1), ("run", 9), ("ahead", 0), ("ahead", 17)]
)
def test_parameters_out_of_range_are_refused(field: str, value: int) -> None:
    """In one line."""
    with pytest.raises(ConfigError, match=f"{field} {value}: it is"):
        Speculative(**{field: value})


@given(st.lists(st.integers(0, 3), max_size=60), st.integers(2, 5), st.integers(1, 6))
def test_a_run_is_followed_by_what_followed_it_last(tokens: list[int], longest: int, most: int) -> None:
    """The longest one that stood there before, wherever the tokens were looked at in between."""
    runs = Runs(longest)
    for length in range(0, len(tokens) + 1, 3):
        runs.after(tokens[:length], [], most)
    found = runs.after(tokens, [], most)
    expected: tuple[int, ...] = ()
    for size in range(min(longest, len(tokens)), 1, -1):
        ends = [
            end
            for end in range(size, len(tokens))
            if tokens[end - size : end] == tokens[len(tokens) - size :]
        ]
        if ends:
            expected = tuple((tokens[ends[-1] :] * most)[:most])
            break
    assert found == expected


def paced(holds: float, row_s: float, draft_s: float = 0.0, steps: int = 400) -> list[int]:
    """The lengths that are chosen where a step takes a second, and rows and drafts what they take."""
    pace, rng, lengths = Pace(16), np.random.default_rng(5), []
    for _ in range(steps):
        length = pace.length()
        lengths.append(length)
        if length:
            pace.drafting_took(length, draft_s * length)
            kept = next((n for n in range(length) if rng.random() >= holds), length)
            pace.held(length, kept)
        pace.took(length, 1.0 + row_s * length)
    return lengths


@pytest.mark.parametrize("holds", [0.0, 0.5, 0.95])
def test_nothing_is_drafted_where_it_does_not_pay(holds: float) -> None:
    """Where each row costs as much as a step; but now and then, to see whether that is still so."""
    lengths = paced(holds, 1.0)
    assert sum(lengths[20:]) <= 2 * (len(lengths) - 20) / 32 + 2


def test_drafts_are_as_long_as_they_pay() -> None:
    """Long where most of them hold and rows cost little, shorter with every reason against."""
    sure, unsure, dear, slow = (
        float(np.mean(paced(*case)[50:])) for case in ((0.99, 0.0), (0.6, 0.05), (0.9, 0.3), (0.9, 0.0, 0.3))
    )
    assert sure > 12
    assert 2 < unsure < 12
    assert dear < 5
    assert slow < 5


@given(st.lists(st.tuples(st.floats(0, 10), st.floats(0, 10), st.integers(0, 8)), max_size=40))
def test_a_pace_stays_within_its_bounds(steps: list[tuple[float, float, int]]) -> None:
    """Whatever times are measured."""
    pace = Pace(8)
    for seconds, drafting_s, kept in steps:
        length = pace.length()
        assert 0 <= length <= 8
        pace.took(length, seconds)
        if length:
            pace.drafting_took(length, drafting_s)
            pace.held(length, min(kept, length))
        assert 0 <= pace.holds <= 1


@pytest.mark.parametrize(
    ("holds", "row_s", "ahead", "sends"),
    [(0.99, 0.01, 16, True), (0.99, 0.01, 400, False), (0.5, 0.01, 4, False), (0.8, 0.5, 2, False)],
)
def test_drafting_goes_on_where_that_is_likely_to_save_a_trip(
    holds: float, row_s: float, ahead: int, sends: bool
) -> None:
    """Not behind what is unlikely to hold, nor where rows cost as much as steps."""
    pace, rng = Pace(16), np.random.default_rng(5)
    assert pace.beyond(1) == 0  # before anything is known
    for _ in range(200):
        length = pace.length() or 1
        pace.held(length, next((n for n in range(length) if rng.random() >= holds), length))
        pace.took(0, 1.0)
        pace.took(length, 1.0 + row_s * length)
    pace.holds = holds
    assert bool(pace.beyond(ahead)) is sends


def test_runs_go_on_behind_what_is_only_guessed() -> None:
    """What is guessed is looked up behind the tokens, and taken for none of them."""
    runs = Runs(4)
    assert runs.after([1, 2, 3, 4, 5, 1, 2], [], 3) == (3, 4, 5)
    assert runs.after([1, 2, 3, 4, 5, 1, 2], [3, 4, 5], 3) == (1, 2, 3)
    assert runs.after([1, 2, 3, 4, 5, 1, 2, 9], [8, 9], 2) == ()
    assert runs.after([1, 2, 3, 4, 5, 1, 2, 9, 2], [3], 2) == (4, 5)
