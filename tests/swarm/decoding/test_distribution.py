"""Whole answers come up as often as the model's own probabilities say, however they are decoded.

Those are computed for every answer there is, by transformers' processors on all logits; what was drawn, with one seed
each, is compared by a chi-square test. Seeds are fixed, so a test that passes always does.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import combinations_with_replacement, count
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from swarm.decoding import DRAFT, BestOf, Contrastive, Sample, Sampling, Speculative, Strategy, Task
from tests.swarm.decoding.chi_square import answers_of, p_value
from tests.swarm.decoding.reference import Logits, Model, Run, make_model, probabilities, processed, run

VOCAB = 5
PROMPT = [1, 2, 3, 1, 2]
NEW = 6
EOS = frozenset({0})
DRAWS = 2000
# A right strategy is found wrong with seeds like these once in so many times; a wrong one has far less.
FITS, DIFFERS = 1e-3, 1e-9

SETTINGS = {
    "plain": Sampling(1.0),
    "top-p": Sampling(0.9, top_p=0.8),
    "penalties": Sampling(
        1.0, repetition_penalty=2.0, presence_penalty=0.3, frequency_penalty=0.4, min_new_tokens=3
    ),
    "chain": Sampling(1.5, 3, 0.95, min_p=0.05, frequency_penalty=0.5, logit_bias={2: 1.0}, banned={4}),
}


@dataclass(frozen=True)
class Way:
    """A strategy and whether somebody drafts for it; its own seeds."""

    strategy: Strategy
    first_seed: int
    draft: bool = False


WAYS = {
    "plain": Way(Sample(), 0),
    "runs": Way(Speculative(run=2), 100_000),
    "draft": Way(Speculative(run=0), 200_000, draft=True),
}


def remembered(model: Model) -> Model:
    """The same model, which computes nothing twice."""
    kept = cache(model)
    return lambda tokens: kept(tuple(tokens))


EXPERT = remembered(make_model(5, VOCAB, 0.8))
OTHER = remembered(make_model(6, VOCAB, 0.8))


def decoded(strategy: Strategy, sampling: Sampling, seed: int, new: int = NEW, **more: Any) -> Run:
    """One answer. A step takes as long whatever is in it, so as much is drafted as holds."""
    ticks = count()
    task = Task(
        PROMPT,
        VOCAB,
        new,
        replace(sampling, seed=seed),
        EOS,
        cached=len(PROMPT) - 1,
        clock=lambda: float(next(ticks)),
        **more,
    )
    return run(strategy.decode(task), EXPERT, PROMPT, OTHER)


@cache
def drawn(way: str, setting: str) -> tuple[Counter[tuple[int, ...]], int, int]:
    """How often each answer came; and how many tokens were drafted for them, and how many answers took drafts."""
    how, seen, drafted, saved = WAYS[way], Counter[tuple[int, ...]](), 0, 0
    for seed in range(how.first_seed, how.first_seed + DRAWS):
        found = decoded(how.strategy, SETTINGS[setting], seed, draft_vocab=VOCAB if how.draft else None)
        steps = [ask for ask in found.asked if ask.branch != DRAFT]
        seen[tuple(found.ids)] += 1
        drafted += sum(len(ask.tokens) - 1 for ask in steps)
        saved += len(found.ids) - len(steps)
    return seen, drafted, saved


def following(sampling: Sampling, tokens: Sequence[int]) -> NDArray[np.float64]:
    """What transformers' processors leave of all the model's logits."""
    return probabilities(processed(EXPERT(tokens), tokens, sampling, len(PROMPT), EOS))


@cache
def shares(setting: str) -> dict[tuple[int, ...], float]:
    """By these settings."""
    return answers_of(partial(following, SETTINGS[setting]), PROMPT, NEW, EOS)


@pytest.mark.parametrize("setting", list(SETTINGS))
@pytest.mark.parametrize("way", list(WAYS))
def test_answers_are_as_likely_as_the_model_says(way: str, setting: str) -> None:
    """All tokens of each together, with every processor in force; drafts hold and drafts fail meanwhile."""
    seen, drafted, saved = drawn(way, setting)
    assert p_value(seen, shares(setting)) > FITS
    if way != "plain":
        assert drafted > saved > DRAWS / 50
        assert drafted - saved > DRAWS / 50


@pytest.mark.parametrize(
    ("setting", "wrong"),
    [
        ("plain", {"temperature": 0.8}),
        ("top-p", {"top_p": 0.7}),
        ("penalties", {"frequency_penalty": 0.0}),
        ("penalties", {"repetition_penalty": 1.0}),
        ("penalties", {"min_new_tokens": 2}),
        ("chain", {"min_p": 0.3}),
        ("chain", {"top_k": 2}),
    ],
)
def test_other_settings_are_told_apart(setting: str, wrong: dict[str, Any]) -> None:
    """The test can fail: the same answers do not fit a distribution that is a little different."""
    sampling = replace(SETTINGS[setting], **wrong)
    others = answers_of(partial(following, sampling), PROMPT, NEW, EOS)
    assert p_value(drawn("draft", setting)[0], others) < DIFFERS


@pytest.mark.parametrize("setting", ["plain", "chain"])
def test_answers_side_by_side_know_nothing_of_each_other(setting: str) -> None:
    """Pairs of them come up as two that are drawn apart."""
    sampling, new = SETTINGS[setting], 3
    alone = answers_of(partial(following, sampling), PROMPT, new, EOS)
    expected: dict[tuple[tuple[int, ...], ...], float] = {
        (one, other): alone[one] * alone[other] * (1 if one == other else 2)
        for one, other in combinations_with_replacement(sorted(alone), 2)
    }
    seen, twins = Counter[tuple[tuple[int, ...], ...]](), Counter[tuple[tuple[int, ...], ...]]()
    for seed in range(DRAWS):
        found = decoded(BestOf(2), sampling, seed, new)
        other = tuple(token.id for token in found.ending.others[0].tokens)
        seen[tuple(sorted((tuple(found.ids), other)))] += 1
        twins[other, other] += 1
    assert p_value(seen, expected) > FITS
    assert p_value(twins, expected) < DIFFERS


def contrast(how: Contrastive, sampling: Sampling, tokens: Sequence[int]) -> NDArray[np.float64]:
    """The definition: the log-ratios of what is plausible, by the temperature."""
    scores: Logits = processed(EXPERT(tokens), tokens, replace(sampling, temperature=0.0), len(PROMPT), EOS)
    plausible = scores >= scores.max() + np.log(how.alpha)
    ratio = scores - OTHER(tokens) / how.amateur_temperature
    return probabilities(np.where(plausible, ratio / sampling.temperature, -np.inf).astype(np.float32))


def test_contrastive_answers_are_as_likely_as_the_ratio_says() -> None:
    """Expert and amateur together, with a penalty."""
    how, sampling = Contrastive(0.2, amateur_temperature=1.5), Sampling(0.8, frequency_penalty=0.3)
    seen = Counter(tuple(decoded(how, sampling, seed, amateur_vocab=VOCAB).ids) for seed in range(DRAWS))
    assert p_value(seen, answers_of(partial(contrast, how, sampling), PROMPT, NEW, EOS)) > FITS
    plain = answers_of(partial(contrast, replace(how, amateur_temperature=3.0), sampling), PROMPT, NEW, EOS)
    assert p_value(seen, plain) < DIFFERS
