"""How a demo spreads layers, and whom it may kill. The processes themselves are in tests/cli/test_net.py."""

from __future__ import annotations

from pathlib import Path
from subprocess import Popen
from typing import cast

import pytest

from protocol.errors import ConfigError
from protocol.model import Span
from swarm.cli.demo_nodes import Demo, DemoNode, replaceable, shipped_model, spread


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


class _Process:
    pid = 1
    code: int | None = None

    def poll(self) -> int | None:
        return self.code


def a_node(number: int, layers: tuple[int, int]) -> DemoNode:
    process = cast("Popen[bytes]", _Process())
    return DemoNode(f"node {number}", layers, f"peer-{number}", "", Path(), process)


def test_only_a_node_in_use_that_others_replace_is_killed() -> None:
    """The one with the longest part of the route; nobody, if none can be spared."""
    demo = Demo(Path(), Path())
    demo.nodes = [a_node(i, layers) for i, layers in enumerate([(0, 3), (0, 5), (3, 8), (5, 8)], 1)]
    used = [("peer-1", Span(0, 4)), ("peer-3", Span(4, 10))]
    assert replaceable(demo, used).name == "node 3"
    cast(_Process, demo.nodes[1].process).code = -9
    with pytest.raises(ConfigError):
        replaceable(demo, [("peer-1", Span(0, 4))])


def test_the_model_is_in_the_package() -> None:
    """With what a checkpoint needs."""
    assert (shipped_model() / "model.safetensors").is_file()
