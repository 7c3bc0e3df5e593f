"""What fits where: held against trying everything."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from node.footprint import Footprint

SIZES = st.integers(1, 40)
MEMORY = st.integers(0, 200)


@st.composite
def footprints(draw: st.DrawFn) -> Footprint:
    blocks = draw(st.integers(1, 9))
    stages = draw(st.lists(SIZES, min_size=blocks + 2, max_size=blocks + 2))
    return Footprint(tuple(stages), (3,) * blocks, 8)


def fewest(sizes: tuple[int, ...], memory: int) -> int | None:
    """Machines, by trying where the first one ends."""
    if not sizes:
        return 0
    found = [
        1 + rest
        for stop in range(1, len(sizes) + 1)
        if sum(sizes[:stop]) <= memory and (rest := fewest(sizes[stop:], memory)) is not None
    ]
    return min(found, default=None)


@given(footprints(), MEMORY)
def test_no_way_needs_fewer_machines(footprint: Footprint, memory: int) -> None:
    """And there is none where a stage fits on none."""
    assert footprint.machines(memory) == fewest(footprint.stages, memory)


@given(footprints(), MEMORY)
def test_no_run_of_layers_is_longer(footprint: Footprint, memory: int) -> None:
    """With the ends that a node serves where it adjoins them."""
    runs = [
        (first, stop)
        for first in range(footprint.blocks)
        for stop in range(first + 1, footprint.blocks + 1)
        if footprint.weights((first, stop)) <= memory
    ]
    longest = min(runs, key=lambda run: (run[0] - run[1], run[0]), default=None)
    assert footprint.most_layers(memory) == longest


@given(footprints(), MEMORY)
def test_tokens_shrink_with_what_weights_take(footprint: Footprint, memory: int) -> None:
    """At least one, as a node says that it is full by refusing sessions."""
    all_layers = (0, footprint.blocks)
    rooms = [footprint.tokens(all_layers, more << 20) for more in (memory, memory + 1)]
    assert 1 <= rooms[0] <= rooms[1]


def test_the_ends_count_where_they_are_served() -> None:
    """The embedding with the first layer, the head with the last."""
    footprint = Footprint((100, 1, 2, 3, 1000), (1, 1, 1), 8)
    assert [footprint.weights(layers) for layers in ((0, 1), (1, 2), (2, 3), (0, 3))] == [101, 2, 1003, 1106]
