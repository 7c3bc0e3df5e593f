"""A node in the route that lies at every step: the answer is right all the same, and no honest peer pays for it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from swarm.session.watch import LINK_STALL_S, PROGRESS_FLOOR_S
from tests.attack.arena import Arena
from tests.attack.attacks import hops
from tests.attack.conftest import running
from tests.support.forge import Forge
from tests.support.local_swarm import LocalSwarm

# Who answers and does nothing is told from who is busy by time alone: the deadline of a hop that says
# it is quick, and before it that of the boundary that has to be bridged to see which of two it is.
STALLS = ("acks_without_sending_on", "pongs_without_computing", "link_down_for_ever")
STALL_S = PROGRESS_FLOOR_S + LINK_STALL_S + 1.0

pytestmark = [pytest.mark.attack, pytest.mark.timeout(480)]


@pytest.fixture
def nodes(forge: Forge, model: Path, layers: tuple[str, ...]) -> Iterator[LocalSwarm]:
    """New ones for each attack: what strangers have said is remembered for a minute."""
    with running(forge, model, layers) as started:
        yield started


@pytest.mark.parametrize("attack", [each.__name__ for each in hops.ATTACKS])
async def test_the_answer_is_right_all_the_same(attack: str, arena: Arena) -> None:
    """The liar was asked, was found out or failed, and honest nodes are not banned for what it said."""
    harm = await arena.endure(attack, seconds=6.0, until_said="met")
    harm.check(stall_s=STALL_S if attack in STALLS else 0.0)
    assert "met" in harm.notes, "nobody has asked the liar anything"
    honest = {node.peer for node in arena.nodes.nodes}
    assert [asked for asked in (*harm.during, *harm.after) if honest & {*asked.banned}] == []
