"""The door for what hops return: every honest answer passes, and nothing that contradicts itself or the question."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.candidates import NOTHING, Candidates, Want, check_sound
from protocol.entries import Entry, Note
from protocol.errors import Malformed
from protocol.messages import Output
from protocol.tensors import from_numpy
from swarm.session.outputs import Asked, Misfit, check_candidates, check_states, fit_rows

VOCAB = 40
HIDDEN = 4


def head(logits: np.ndarray[Any, Any], want: Want) -> Candidates:
    """What an honest head returns, in fp32 as it computes."""
    logits = logits.astype(np.float32)
    top = min(want.top or VOCAB, VOCAB)
    ids = np.argsort(-logits, axis=1, kind="stable")[:, :top].astype(np.int32)
    scaled = logits / np.float32(want.temperature)
    best = scaled.max(axis=1)
    lse = (best + np.log(np.exp(scaled - best[:, None]).sum(axis=1, dtype=np.float32))).astype(np.float32)
    return Candidates(ids, np.take_along_axis(logits, ids, 1), lse, logits[:, list(want.ids)])


def check(found: Candidates) -> None:
    """What an answer to WANT passes on its way in."""
    check_sound(found)
    check_candidates(found, WANT, 1, VOCAB)


@settings(max_examples=200, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    rows=st.integers(1, 4),
    top=st.sampled_from([0, 1, 2, 17, VOCAB - 1, VOCAB]),
    ids=st.lists(st.integers(0, VOCAB - 1), unique=True, max_size=VOCAB),
    temperature=st.sampled_from([0.001, 0.05, 0.7, 1.0, 1000.0]),
    spread=st.sampled_from([0.0, 0.01, 1.0, 50.0]),
    masked=st.booleans(),
)
def test_honest_candidates_pass(
    seed: int, rows: int, top: int, ids: list[int], temperature: float, spread: float, masked: bool
) -> None:
    """Whatever is asked for, at any temperature, with equal logits and with tokens that can never come."""
    logits = np.random.default_rng(seed).standard_normal((rows, VOCAB)) * spread
    if masked:
        logits[:, 1::3] = -np.inf
    want = Want(top=top, ids=tuple(ids), temperature=temperature)
    check_candidates(head(logits, want), want, rows, VOCAB)


WANT = Want(top=3, ids=(5, 1), temperature=0.5)
LOGITS = np.linspace(3.0, -3.0, VOCAB)[None]


def spoilt(**other: Any) -> Candidates:
    sound = head(LOGITS, WANT)
    fields = {name: getattr(sound, name) for name in ("ids", "logits", "lse", "asked")}
    return Candidates(**{**fields, **{name: np.array(value) for name, value in other.items()}})


@pytest.mark.parametrize(
    "found",
    [
        spoilt(ids=[[0, 1]], logits=[[3.0, 2.0]]),
        spoilt(ids=np.zeros((1, 0), int), logits=np.zeros((1, 0))),
        spoilt(ids=[[0, 0, 1]]),
        spoilt(ids=[[0, 1, VOCAB]]),
        spoilt(ids=[[0, 1, -1]]),
        spoilt(logits=[[1.0, 2.0, 3.0]]),
        spoilt(logits=[[np.inf, 1.0, 0.0]]),
        spoilt(logits=[[-np.inf, -np.inf, -np.inf]]),
        spoilt(logits=[[3.0, np.nan, 0.0]]),
        spoilt(lse=[np.nan]),
        spoilt(lse=[np.inf]),
        spoilt(lse=[5.0]),
        spoilt(lse=[50.0]),
        spoilt(lse=[]),
        spoilt(asked=[[0.0]]),
        spoilt(asked=[[np.nan, 2.0]]),
        spoilt(asked=[[np.inf, 2.0]]),
        spoilt(asked=[[2.95, head(LOGITS, WANT).asked[0, 1]]]),
        spoilt(asked=[[0.0, 2.0]]),
    ],
)
def test_candidates_that_cannot_be(found: Candidates) -> None:
    """Each is refused, and as nothing else than Malformed."""
    check_candidates(spoilt(), WANT, 1, VOCAB)
    with pytest.raises(Malformed):
        check(found)


@pytest.mark.parametrize("shape", [None, (1, HIDDEN - 1), (1, HIDDEN)], ids=str)
@pytest.mark.parametrize("wanted", [False, True])
def test_states_come_where_they_are_wanted(shape: tuple[int, int] | None, wanted: bool) -> None:
    """As wide as the model's, and nowhere else."""
    states = None if shape is None else np.zeros(shape, np.float32)
    found, want = replace(spoilt(), states=states), replace(WANT, states=wanted)
    if shape == ((1, HIDDEN) if wanted else None):
        check_states(found, want, HIDDEN)
    else:
        with pytest.raises(Misfit):
            check_states(found, want, HIDDEN)


def test_the_position_is_that_asked_for() -> None:
    """Of hidden states the first row's, with candidates the step's; another one is another step's."""
    rows = from_numpy(np.zeros((1, HIDDEN), np.float32))
    last = Asked(Want("hidden"), 7, 5)
    best = Asked(WANT, 7, 5)
    sizes: Any = {"vocab_size": VOCAB, "hidden_size": HIDDEN, "dtype": "f32"}
    last.check(Output(0, 11, hidden=rows), **sizes)
    best.check(Output(0, 7, candidates=spoilt()), **sizes)
    for position in (0, 7, 12):
        with pytest.raises(Misfit):
            last.check(Output(0, position, hidden=rows), **sizes)
    for position in (0, 11):
        with pytest.raises(Misfit):
            best.check(Output(0, position, candidates=spoilt()), **sizes)


def test_rows_come_in_order() -> None:
    """Exactly the rows that are lacking are kept; rows since rolled back are cut off."""

    def entry(number: int, start: int, stop: int) -> Entry:
        rows = from_numpy(np.zeros((stop - start, HIDDEN), np.float32))
        return Entry(Note(number, NOTHING), start, rows)

    lacking = [entry(3, 4, 6), entry(4, 6, 9)]
    rows = from_numpy(np.arange(7 * HIDDEN, dtype=np.float32).reshape(7, HIDDEN))
    assert fit_rows(lacking, 4, rows.row_slice(0, 5)).rows == 5
    assert fit_rows(lacking, 4, rows).numpy().tolist() == rows.numpy()[:5].tolist()
    for position, count in [(4, 4), (3, 6), (5, 5), (0, 7)]:
        with pytest.raises(Misfit):
            fit_rows(lacking, position, rows.row_slice(0, count))
