"""Which span a node takes when its owner does not say."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.presence.placement import choose_precision, choose_span, coverage
from protocol.model import Span

RNG = random.Random(0)


def test_coverage_counts_nodes() -> None:
    """Each stage, half-open; spans of a longer model do no harm."""
    assert coverage([Span(0, 2), Span(1, 4), Span(3, 9)], 5) == [1, 2, 1, 2, 1]


def test_what_nobody_serves_comes_first() -> None:
    """The embedding and the head are stages like any other."""
    assert choose_span([0, 3, 3, 3], [10] * 4, 10, RNG) == Span(0, 1)
    assert choose_span([3, 3, 3, 0], [10] * 4, 10, RNG) == Span(3, 4)
    assert choose_span([1, 0, 0, 1, 0, 1], [10] * 6, 20, RNG) == Span(1, 3)


def test_else_the_weakest_window() -> None:
    """As wide as memory allows."""
    assert choose_span([3, 3, 1, 1, 3, 3], [10] * 6, 29, RNG) == Span(2, 4)
    assert choose_span([5, 5, 5], [10] * 3, 1000, RNG) == Span(0, 3)


def test_the_first_node_leaves_one_hole() -> None:
    """In an empty swarm it starts at an end, not in the middle."""
    chosen = {choose_span([0] * 8, [10] * 8, 30, random.Random(seed)) for seed in range(20)}
    assert chosen == {Span(0, 3), Span(5, 8)}


def test_stages_that_fit_nowhere_are_gone_around() -> None:
    """A large embedding does not keep a small node from the blocks; nothing fits into nothing."""
    assert choose_span([0] * 4, [100, 10, 10, 100], 25, RNG) == Span(1, 3)
    assert choose_span([0] * 4, [100] * 4, 25, RNG) is None


SWARMS = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 50)), min_size=1, max_size=20)


@given(SWARMS, st.integers(0, 200), st.integers())
def test_the_choice_fits_and_raises_the_weakest_it_can(
    stages: list[tuple[int, int]], memory_bytes: int, seed: int
) -> None:
    """No window that fits leaves the sorted stages better off, and the same seed chooses the same."""
    counts, sizes = [c for c, _ in stages], [b for _, b in stages]
    span = choose_span(counts, sizes, memory_bytes, random.Random(seed))
    fitting = [
        Span(a, b)
        for a in range(len(sizes))
        for b in range(a + 1, len(sizes) + 1)
        if sum(sizes[a:b]) <= memory_bytes
    ]
    if not fitting:
        assert span is None
        return
    assert span in fitting
    after = {window: sorted(c + (i in window) for i, c in enumerate(counts)) for window in fitting}
    assert after[span] == max(after.values())
    assert span == choose_span(counts, sizes, memory_bytes, random.Random(seed))


@pytest.mark.parametrize("stages", [1022])
def test_large_models_are_quick(stages: int) -> None:
    """The deepest model there may be is placed while one waits."""
    span = choose_span([0] * stages, [10] * stages, 100, RNG)
    assert span in (Span(0, 10), Span(stages - 10, stages))


def test_the_most_precise_that_leaves_no_more_holes() -> None:
    """A whole swarm gains precision; one with holes has them filled first, at whatever precision."""
    sizes = [[40] * 6, [20] * 6, [10] * 6]
    assert choose_precision([1] * 6, sizes, 80, RNG) in [(0, Span(first, first + 2)) for first in range(5)]
    assert choose_precision([0, 0, 1, 1, 1, 1], sizes, 80, RNG) == (0, Span(0, 2))
    assert choose_precision([0, 0, 0, 1, 1, 1], sizes, 80, RNG) == (1, Span(0, 4))
    assert choose_precision([0] * 6, sizes, 80, RNG) == (2, Span(0, 6))
    assert choose_precision([0] * 6, sizes, 9, RNG) is None


def test_a_span_that_is_given_has_the_most_precise_in_which_it_fits() -> None:
    """Whatever the swarm lacks."""
    sizes = [[40] * 6, [20] * 6, [10] * 6]
    found = [choose_precision([0] * 6, sizes, memory, RNG, Span(1, 4)) for memory in (120, 119, 60, 59, 29)]
    assert found == [(0, Span(1, 4)), (1, Span(1, 4)), (1, Span(1, 4)), (2, Span(1, 4)), None]


@given(SWARMS, st.integers(0, 200), st.integers())
def test_a_choice_of_one_precision_is_no_choice(
    stages: list[tuple[int, int]], memory_bytes: int, seed: int
) -> None:
    """The span is the same; and a second precision that takes no less changes nothing."""
    counts, sizes = [c for c, _ in stages], [b for _, b in stages]
    span = choose_span(counts, sizes, memory_bytes, random.Random(seed))
    for precisions in ([sizes], [sizes, sizes]):
        chosen = choose_precision(counts, precisions, memory_bytes, random.Random(seed))
        assert chosen == (None if span is None else (0, span))
