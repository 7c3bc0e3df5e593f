"""How a demo spreads layers, and whom it may kill. The processes themselves are in tests/cli/test_net.py."""

from __future__ import annotations

from pathlib import Path
from subprocess import Popen
from typing import cast

import pytest

from protocol.errors import ConfigError
from protocol.model import Span
from swarm.cli.children import Child
from swarm.cli.demo_layout import AUTO, Layout, Weights, choose_layout, cut, spread
from swarm.cli.demo_nodes import replaceable, shipped_model
from swarm.cli.local_nodes import LocalNode, LocalNodes, Place, Task


@pytest.mark.parametrize("blocks", [1, 2, 8, 12, 33])
@pytest.mark.parametrize("nodes", [1, 2, 3, 4, 5, 8, 16])
def test_any_one_node_can_be_spared(blocks: int, nodes: int) -> None:
    """From two nodes on every layer is served twice by ranges that are not empty; too many nodes are refused."""
    if nodes > 2 * blocks:
        with pytest.raises(ConfigError):
            spread(blocks, nodes)
        return
    layers = spread(blocks, nodes)
    assert len(layers) == nodes
    assert all(0 <= first < stop <= blocks for first, stop in layers)
    for layer in range(blocks):
        assert sum(first <= layer < stop for first, stop in layers) >= min(nodes, 2)


def test_four_nodes_overlap() -> None:
    """The usual demo: borders differ, so a route has to enter in the middle of a range after a loss."""
    assert spread(8, 4) == [(0, 3), (0, 5), (3, 8), (5, 8)]


@pytest.mark.parametrize("blocks", [2, 8, 33])
def test_every_layer_is_served_once_where_there_is_no_room_for_two(blocks: int) -> None:
    """By ranges behind one another."""
    for nodes in range(1, min(blocks, 16) + 1):
        layers = cut(blocks, nodes)
        assert [first for first, _ in layers] == [0, *(stop for _, stop in layers[:-1])]
        assert layers[-1][1] == blocks
        assert all(first < stop for first, stop in layers)


# Eight layers of 10 bytes with an embedding of 30 and a head of 20, and fewer in fewer bits.
STAGES = {"none": (30, *(10,) * 8, 20), "int8": (30, *(4,) * 8, 20), "int4": (30, *(2,) * 8, 20)}


@pytest.mark.parametrize(
    ("room_bytes", "quant", "chosen", "spared", "size_bytes"),
    [
        (1000, AUTO, "none", True, 260),
        (260, AUTO, "none", True, 260),
        (259, AUTO, "int8", True, 164),
        (163, AUTO, "int4", True, 132),
        (131, AUTO, "none", False, 130),
        (129, AUTO, "int8", False, 82),
        (81, AUTO, "int4", False, 66),
        (1000, "int8", "int8", True, 164),
        (163, "int8", "int8", False, 82),
        (259, "none", "none", False, 130),
    ],
)
def test_a_node_that_may_die_comes_before_precision(
    room_bytes: int, quant: str, chosen: str, spared: bool, size_bytes: int
) -> None:
    """Every layer twice in any precision, then once, the most precise first; what was asked for is never changed."""
    found = choose_layout(Weights("some", STAGES, room_bytes), 4, quant)
    layers = spread(8, 4) if spared else cut(8, 4)
    assert found == Layout(chosen, tuple(layers), spared, size_bytes)


def test_what_does_not_fit_is_told_with_its_size() -> None:
    """And so is a precision that there is not; in one line."""
    weights = Weights("some", STAGES, 65)
    with pytest.raises(ConfigError, match="some takes 66 B, and 65 B may be used"):
        choose_layout(weights, 4, AUTO)
    with pytest.raises(ConfigError, match="some takes 82 B in int8"):
        choose_layout(weights, 4, "int8")
    with pytest.raises(ConfigError, match="none, int8, int4, or auto"):
        choose_layout(weights, 4, "int3")


def test_a_node_alone_has_all_and_cannot_be_spared() -> None:
    """The whole model."""
    assert choose_layout(Weights("some", STAGES, 130), 1, AUTO) == Layout("none", ((0, 8),), False, 130)


class _Process:
    pid = 1
    code: int | None = None

    def poll(self) -> int | None:
        return self.code


def a_node(number: int, layers: tuple[int, int]) -> LocalNode:
    child = Child(f"node {number}", cast("Popen[bytes]", _Process()))
    return LocalNode(Place(child.name, Path(), ""), Task("", layers), f"peer-{number}", child)


def test_only_a_node_in_use_that_others_replace_is_killed() -> None:
    """The one with the longest part of the route; nobody, if none can be spared."""
    demo = LocalNodes()
    demo.nodes = [a_node(i, layers) for i, layers in enumerate([(0, 3), (0, 5), (3, 8), (5, 8)], 1)]
    used = [("peer-1", Span(0, 4)), ("peer-3", Span(4, 10))]
    assert replaceable(demo, used).name == "node 3"
    cast(_Process, demo.nodes[1].child.process).code = -9
    with pytest.raises(ConfigError):
        replaceable(demo, [("peer-1", Span(0, 4))])


def test_the_model_is_in_the_package() -> None:
    """With what a checkpoint needs."""
    assert (shipped_model() / "model.safetensors").is_file()
