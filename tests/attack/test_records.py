"""Signed lies: they move no honest client, fill no book and reach no screen. See the package for the bounds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from tests.attack.arena import Arena
from tests.attack.attacks import records
from tests.attack.conftest import running
from tests.support.forge import Forge
from tests.support.local_swarm import LocalSwarm

pytestmark = [pytest.mark.attack, pytest.mark.timeout(480)]

# Those that a module of its own puts to the test, because they need more than nodes.
ELSEWHERE = (records.vouchers, records.listening_vouchers, records.records_of_a_victim)
# Thousands of records take their time to sign and to spread.
MANY = (records.dead_records.__name__, records.more_than_a_book_holds.__name__)
MANY_S, FEW_S = 12.0, 6.0
LIES = [each.__name__ for each in records.ATTACKS if each not in ELSEWHERE]


@pytest.fixture
def nodes(forge: Forge, model: Path, layers: tuple[str, ...]) -> Iterator[LocalSwarm]:
    """New ones for each attack: what strangers have said is remembered for a minute."""
    with running(forge, model, layers) as started:
        yield started


@pytest.mark.parametrize("attack", LIES)
async def test_lies_move_nobody(attack: str, arena: Arena) -> None:
    """Honest clients, those that stay and those that come, find the honest nodes and the one model there is."""
    harm = await arena.endure(attack, seconds=MANY_S if attack in MANY else FEW_S)
    harm.check()


async def test_nodes_print_nothing_that_a_stranger_wrote(arena: Arena) -> None:
    """What a terminal would obey is in no line of a node's output."""
    harm = await arena.endure("nasty_records", seconds=6.0)
    harm.check()
    await trio.lowlevel.checkpoint()
    for node in arena.nodes.nodes:
        printed = "\n".join(node.said)
        assert all(character.isprintable() or character == "\n" for character in printed), printed
        assert "owned" not in printed
        assert "ready 12D3KooWfake" not in printed
