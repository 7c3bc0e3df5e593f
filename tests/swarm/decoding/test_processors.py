"""Processors over candidates leave what transformers' leave of all logits, alone and in chains."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from swarm.decoding import Sampling
from swarm.decoding.choose import choose_sampled
from swarm.decoding.edits import edits_of
from swarm.decoding.row import Row, read_row, want_row
from tests.swarm.decoding.reference import Logits, answer, make_model, probabilities, processed

VOCAB = 160
EOS = (3, 7)
SEEDS = st.integers(0, 2**32 - 1)
IDS = st.integers(0, VOCAB - 1)
# What a chain is made of: each on its own, and any of them together.
EDITS: dict[str, st.SearchStrategy[Any]] = {
    "repetition_penalty": st.sampled_from([0.5, 1.3, 4.0]),
    "presence_penalty": st.sampled_from([-2.0, 0.5, 3.0]),
    "frequency_penalty": st.sampled_from([-1.0, 0.25, 2.0]),
    "no_repeat_ngram": st.integers(1, 4),
    "logit_bias": st.dictionaries(
        IDS, st.sampled_from([-100.0, -3.0, 0.7, 5.0, 100.0]), min_size=1, max_size=8
    ),
    "allowed": st.one_of(
        st.frozensets(IDS, min_size=3, max_size=150),
        st.just(lambda tokens: range(len(tokens) % 7, VOCAB, 7)),
    ),
    "banned": st.frozensets(IDS, min_size=1, max_size=40),
    "min_new_tokens": st.sampled_from([1, 20]),
}
CUTS: dict[str, st.SearchStrategy[Any]] = {
    "top_k": st.sampled_from([1, 7, 50, 500]),
    "top_p": st.sampled_from([0.95, 0.4, 0.001]),
    "min_p": st.sampled_from([1.0, 0.3, 0.02]),
    "typical_p": st.sampled_from([0.95, 0.5, 0.1]),
}
ALONE = [*EDITS, *CUTS]
TEMPERATURES = st.sampled_from([0.3, 1.0, 1.7])
CHAINS = st.fixed_dictionaries({"temperature": TEMPERATURES}, optional={**EDITS, **CUTS})


def place(seed: int, *, spread: float = 2.0, coarse: bool = False) -> tuple[Logits, list[int], int]:
    """Logits, what stands before them (with repetitions), and how much of that is the prompt's."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, 9, int(rng.integers(2, 14))).tolist()
    return make_model(seed, VOCAB, spread, coarse)(tokens), tokens, int(rng.integers(1, len(tokens)))


def row_of(logits: Logits, tokens: list[int], prompt: int, sampling: Sampling, width: int) -> Row:
    """The row as a head returns it that is asked for the `width` best ids that no processor touches."""
    edits = edits_of(sampling, tokens, prompt, EOS)
    want = want_row(edits, width, sampling.divisor, VOCAB)
    return read_row(answer(logits, want), want, edits, VOCAB)


def leaves_some(logits: Logits, tokens: list[int], prompt: int, sampling: Sampling) -> bool:
    """Whether any id is left; transformers takes all that are allowed where all of them are banned."""
    edits = edits_of(sampling, tokens, prompt, EOS)
    return bool(np.isfinite(edits.apply(np.arange(VOCAB), logits)).any())


def check(seed: int, sampling: Sampling, width: int) -> int:
    """Over a fine grid of draws each id comes up as often as its probability says; how many are unsettled."""
    logits, tokens, prompt = place(seed)
    assume(leaves_some(logits, tokens, prompt, sampling))
    scores = processed(logits, tokens, sampling, prompt, EOS)
    row = row_of(logits, tokens, prompt, sampling, width)
    choices = [choose_sampled(row, sampling, (point + 0.5) / 400) for point in range(400)]
    expected = probabilities(scores)
    counts = np.bincount([choice.token for choice in choices if choice is not None], minlength=VOCAB)
    unsettled = choices.count(None)
    # On a grid of 400 points a cell of probability p holds 400 p points, give or take one at each border.
    assert (counts <= 400 * expected + 1.01).all()
    assert (counts >= 400 * expected - 1.01 - unsettled).all()
    assert width or not unsettled
    return unsettled


@pytest.mark.parametrize("name", ALONE)
@settings(max_examples=25, deadline=None)
@given(data=st.data(), seed=SEEDS, temperature=TEMPERATURES, width=st.sampled_from([0, 20, 60]))
def test_each_alone(name: str, data: st.DataObject, seed: int, temperature: float, width: int) -> None:
    """The distribution is that of transformers' processor on all logits."""
    sampling = Sampling(**{"temperature": temperature, name: data.draw((EDITS | CUTS)[name])})
    check(seed, sampling, width)


@settings(max_examples=250, deadline=None)
@given(seed=SEEDS, chain=CHAINS, width=st.sampled_from([0, 20, 60]))
def test_random_chains(seed: int, chain: dict[str, Any], width: int) -> None:
    """In transformers' order, whatever is combined."""
    check(seed, Sampling(**chain), width)


@settings(max_examples=150, deadline=None)
@given(
    seed=SEEDS,
    chain=CHAINS,
    spread=st.sampled_from([0.01, 1.0, 4.0]),
    coarse=st.booleans(),
    u=st.floats(0, 1, exclude_max=True),
)
def test_few_candidates_draw_what_all_draw(
    seed: int, chain: dict[str, Any], spread: float, coarse: bool, u: float
) -> None:
    """However many candidates come, the row settles on the same id or says that it cannot."""
    logits, tokens, prompt = place(seed, spread=spread, coarse=coarse)
    sampling = Sampling(**chain)
    assume(leaves_some(logits, tokens, prompt, sampling))

    def draw(width: int) -> int | None:
        choice = choose_sampled(row_of(logits, tokens, prompt, sampling, width), sampling, u)
        return None if choice is None else choice.token

    whole = draw(0)
    assert whole is not None
    assert {draw(width) for width in (1, 3, 20, 90, 159)} <= {whole, None}


@settings(max_examples=100, deadline=None)
@given(seed=SEEDS, chain=st.fixed_dictionaries({}, optional=EDITS), coarse=st.booleans())
def test_the_best_is_that_of_all_logits(seed: int, chain: dict[str, Any], coarse: bool) -> None:
    """One id that no processor touches, and those that one does, are enough to know the best."""
    logits, tokens, prompt = place(seed, coarse=coarse)
    sampling = Sampling(**chain)
    assume(leaves_some(logits, tokens, prompt, sampling))
    scores = processed(logits, tokens, sampling, prompt, EOS)
    row = row_of(logits, tokens, prompt, sampling, 1)
    assert row.ids[0] == int(np.argmax(scores))
    assert row.scores[0] == scores.max()


# The last of the best is in the window and rises: every entry then stands before all unseen ids.
@example(seed=2801720)
@settings(max_examples=40, deadline=None)
@given(seed=SEEDS)
def test_a_bonus_leaves_no_unseen_id_before_the_known(seed: int) -> None:
    """Penalties below 1 lift ids past others."""
    assert check(seed, Sampling(1.7, repetition_penalty=0.5), 60) < 400


def test_every_setting_is_in_the_chains() -> None:
    """A new one is compared, too."""
    assert {field.name for field in fields(Sampling)} == {"temperature", "seed", *ALONE}
