"""Masks that are known once a row is there: the tokens are those of exact decoding, and rows stay narrow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol import limits
from protocol.errors import ConfigError
from swarm.decoding import BeamSearch, BestOf, Grammar, Sampling, Speculative, Strategy, Task, choose_strategy
from swarm.decoding.chooser import SIFTED_WIDTH
from swarm.decoding.grammar import DEPTH, SOURCE_BYTES, Guide, Mask
from tests.swarm.decoding.reference import Run, make_model, run

VOCAB = 3000
PROMPT = [5, 6, 7, 5, 6]
NEW = 10


class Some(Guide):
    """Leaves a share of the vocabulary after each token, another one each time."""

    def __init__(self, seed: int, share: float) -> None:
        self._seed = seed
        self._share = share

    def mask(self, tokens: Sequence[int]) -> Mask:
        """See `Guide`."""
        mask: Mask = np.random.default_rng([self._seed, len(tokens)]).random(VOCAB) < self._share
        mask[tokens[-1] % VOCAB] = True
        return mask

    def __call__(self, tokens: Sequence[int]) -> list[int]:
        return np.flatnonzero(self.mask(tokens)).tolist()


def decoded(strategy: Strategy | str, sampling: Sampling, seed: int, repeats: bool = False) -> Run:
    """What it makes of a model that is made up; one that `repeats` goes round in circles."""
    spread = 0.0 if repeats else 3.0
    model = make_model(seed, VOCAB, spread)
    task = Task(PROMPT, VOCAB, NEW, sampling)
    return run(choose_strategy(strategy, sampling).decode(task), model, PROMPT)


@settings(max_examples=40)
@given(
    seed=st.integers(0, 99),
    share=st.sampled_from([0.001, 0.03, 0.6, 0.99]),
    how=st.sampled_from(
        [
            ("auto", Sampling()),
            ("auto", Sampling(1.0, seed=1)),
            ("auto", Sampling(0.7, top_k=5, repetition_penalty=1.2, seed=1)),
            ("auto", Sampling(0.9, top_p=0.9, seed=1)),
            ("auto", Sampling(1.0, min_p=0.05, presence_penalty=0.5, seed=1)),
            ("auto", Sampling(1.0, typical_p=0.8, seed=1)),
            (Speculative(), Sampling()),
            (Speculative(), Sampling(1.0, seed=2)),
            (BeamSearch(3), Sampling()),
            (BestOf(3), Sampling(1.0, seed=4)),
        ]
    ),
)
def test_a_mask_gives_the_tokens_that_the_same_ids_by_name_give(
    seed: int, share: float, how: tuple[Strategy | str, Sampling]
) -> None:
    """Whatever is left of the vocabulary, little or nearly all, and whatever it is chosen by."""
    strategy, sampling = how
    guide = Some(seed, share)
    masked = decoded(strategy, _with(sampling, guide), seed)
    named = decoded(strategy, _with(sampling, guide.__call__), seed)
    assert masked.ids == named.ids
    assert [token.logprob for token in masked.tokens] == pytest.approx([t.logprob for t in named.tokens])


def test_rows_are_narrow_where_the_best_are_left() -> None:
    """The usual few candidates are asked for, once a token, though thousands of ids are left."""
    found = decoded("auto", Sampling(allowed=Some(1, 0.9)), 1)
    assert [ask.want.top for ask in found.asked] == [SIFTED_WIDTH] * NEW


def test_what_is_left_is_asked_for_by_name_where_it_is_little() -> None:
    """A few ids far down: they are asked for, not everything."""
    found = decoded("auto", Sampling(allowed=Some(1, 0.001)), 1)
    again = [ask for ask in found.asked if ask.want.top == 1]
    assert again
    assert all(0 < len(ask.want.ids) < 20 for ask in again)
    assert all(ask.want.top for ask in found.asked)


def test_where_caches_do_not_go_back_everything_is_asked_for_at_once() -> None:
    """To come to a place again would cost all tokens before it."""
    sampling = Sampling(allowed=Some(1, 0.001))
    task = Task(PROMPT, VOCAB, NEW, sampling, goes_back=lambda: False)
    found = run(choose_strategy("greedy", sampling).decode(task), make_model(1, VOCAB), PROMPT)
    assert [ask.want.top for ask in found.asked] == [0] * NEW
    assert found.ids == decoded("greedy", sampling, 1).ids


def test_many_ids_by_a_function_are_sifted_as_well() -> None:
    """More than can be asked for by name: neither they nor all logits are asked for."""
    vocab = 3 * limits.ASKED_IDS
    even = range(0, vocab, 2)
    sampling = Sampling(allowed=lambda _: even)
    model = make_model(3, vocab)
    task = Task(PROMPT, vocab, NEW, sampling)
    found = run(choose_strategy("auto", sampling).decode(task), model, PROMPT)
    assert all(token % 2 == 0 for token in found.ids)
    assert {ask.want.top for ask in found.asked} == {SIFTED_WIDTH}


def test_regression_a_draft_goes_on_after_a_place_that_is_asked_again() -> None:
    """The place was wound back to: what was drafted behind it is run anew."""
    sampling = Sampling(allowed=Some(2, 0.002), seed=None)
    found = decoded(Speculative(run=2), sampling, 2, repeats=True)
    assert found.ids == decoded("greedy", sampling, 2, repeats=True).ids


def test_a_grammar_is_bounded() -> None:
    """In size and in depth, before anybody looks at it; what is no JSON is told."""
    deep: dict[str, object] = {}
    for _ in range(DEPTH + 1):
        deep = {"items": deep}
    with pytest.raises(ConfigError, match="nested"):
        Grammar.json_schema(deep)
    with pytest.raises(ConfigError, match="bytes"):
        Grammar.regex("a" * (SOURCE_BYTES + 1))
    with pytest.raises(ConfigError, match="not JSON"):
        Grammar.json_schema('{"type": ')
    with pytest.raises(ConfigError, match="object"):
        Grammar.json_schema("[1]")
    with pytest.raises(ConfigError, match="start"):
        Grammar.lark('begin: "a"')


def _with(sampling: Sampling, allowed: object) -> Sampling:
    return replace(sampling, allowed=allowed)  # type: ignore[arg-type]
