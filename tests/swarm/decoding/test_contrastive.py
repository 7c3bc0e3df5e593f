"""Contrastive decoding from a few candidates of both models is that of all logits of both."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.errors import ConfigError
from swarm.decoding import AMATEUR, Contrastive, Sampling, Task
from tests.swarm.decoding.reference import Logits, Model, Run, make_model, processed, run

VOCAB = 300
PROMPT = [5, 6, 5, 7]
NEW = 8
SEEDS = st.integers(0, 2**32 - 1)


def models(seed: int, spread: float, padding: int) -> tuple[Model, Model]:
    """An expert, and an amateur that agrees with it in part; its vocabulary is longer or shorter."""
    expert, other = make_model(seed, VOCAB, spread), make_model(seed + 1, VOCAB + padding, spread)

    def amateur(tokens: Any) -> Logits:
        logits, common = other(tokens), min(VOCAB, VOCAB + padding)
        logits[:common] = 0.6 * expert(tokens)[:common] + 0.4 * logits[:common]
        return logits

    return expert, amateur


def contrasted(expert: Model, amateur: Model, how: Contrastive, sampling: Sampling) -> list[int]:
    """The definition, on all logits."""
    tokens = list(PROMPT)
    for _ in range(NEW):
        scores = processed(expert(tokens), tokens, sampling, len(PROMPT)).astype(np.float64)
        theirs = amateur(tokens).astype(np.float64) / how.amateur_temperature
        if how.head_parameter:
            plausible = scores >= np.sort(scores)[-how.head_parameter]
        else:
            plausible = scores >= scores.max() + np.log(how.alpha)
        common = min(len(scores), len(theirs))
        ratio = np.where(plausible[:common], scores[:common] - theirs[:common], -np.inf)
        tokens.append(int(np.argmax(ratio)))
    return tokens[len(PROMPT) :]


def decoded(expert: Model, amateur: Model, how: Contrastive, sampling: Sampling, padding: int = 0) -> Run:
    """By the strategy."""
    task = Task(PROMPT, VOCAB, NEW, sampling, amateur_vocab=VOCAB + padding, top_logprobs=3)
    return run(how.decode(task), expert, PROMPT, amateur)


@settings(max_examples=80, deadline=None)
@given(
    seed=SEEDS,
    alpha=st.sampled_from([1.0, 0.3, 0.1, 0.001]),
    head_parameter=st.sampled_from([0, 1, 5, 200]),
    temperature=st.sampled_from([0.5, 1.0, 2.0]),
    spread=st.sampled_from([0.3, 3.0]),
    padding=st.sampled_from([-5, 0, 9]),
    penalty=st.sampled_from([1.0, 1.3]),
)
def test_the_definition_on_all_logits(
    seed: int,
    alpha: float,
    head_parameter: int,
    temperature: float,
    spread: float,
    padding: int,
    penalty: float,
) -> None:
    """Whatever is plausible, however flat either is, and where one vocabulary is padded further."""
    expert, amateur = models(seed, spread, padding)
    how, sampling = Contrastive(alpha, head_parameter, temperature), Sampling(repetition_penalty=penalty)
    try:
        found = decoded(expert, amateur, how, sampling, padding).ids
    except ConfigError:
        assert padding < 0
        return
    assert found == contrasted(expert, amateur, how, sampling)


def test_both_are_asked_at_once() -> None:
    """One trip for each token, each model from where its caches end."""
    expert, amateur = models(3, 4.0, 0)
    task = Task(PROMPT, VOCAB, NEW, cached=3, amateur_vocab=VOCAB)
    found = run(Contrastive(0.5).decode(task), expert, PROMPT, amateur)
    assert len(found.together) == NEW
    first, second, *_ = found.together
    assert [(ask.branch, ask.position) for ask in first.asks] == [(0, 3), (AMATEUR, 0)]
    assert [(ask.branch, ask.position) for ask in second.asks] == [(0, 4), (AMATEUR, 4)]
    assert all(len(ask.tokens) == 1 for ask in second.asks)


def test_drawn_by_the_ratio() -> None:
    """Over many seeds each plausible token comes as often as its ratio says."""
    logits: Logits = np.full(VOCAB, -20, np.float32)
    logits[[4, 9, 20]] = [2.0, 1.5, 1.0]
    theirs: Logits = np.zeros(VOCAB, np.float32)
    theirs[[4, 9, 20]] = [1.0, 0.0, 0.5]
    counts = dict.fromkeys((4, 9, 20), 0)
    for seed in range(400):
        task = Task(PROMPT, VOCAB, 1, Sampling(1.0, seed=seed), amateur_vocab=VOCAB)
        [token] = run(Contrastive().decode(task), lambda _: logits, PROMPT, lambda _: theirs).ids
        counts[token] += 1
    weights = np.exp([1.0, 1.5, 0.5])
    assert np.allclose(np.array([*counts.values()]) / 400, weights / weights.sum(), atol=0.08)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"alpha": 0.0}, "alpha"),
        ({"alpha": 1.5}, "alpha"),
        ({"head_parameter": -1}, "head_parameter"),
        ({"amateur_temperature": 0.0}, "amateur_temperature"),
    ],
)
def test_parameters_out_of_range(wrong: dict[str, Any], says: str) -> None:
    """One clear line that names the parameter."""
    with pytest.raises(ConfigError, match=says):
        Contrastive(**wrong)


def test_cuts_say_nothing_to_it() -> None:
    """What is plausible is said by alpha."""
    with pytest.raises(ConfigError, match="top_p"):
        Contrastive().check(Sampling(1.0, top_p=0.9))
    Contrastive().check(Sampling(1.0))
