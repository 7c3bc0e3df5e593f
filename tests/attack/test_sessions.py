"""Sessions that loop, hoard, hang and hurry: see the package for what each may do at most."""

from __future__ import annotations

import pytest

from tests.attack.arena import Arena
from tests.attack.attacks import loops, slots

pytestmark = [pytest.mark.attack, pytest.mark.timeout(480)]


@pytest.mark.parametrize("attack", [each.__name__ for each in loops.ATTACKS])
async def test_nothing_goes_round(attack: str, arena: Arena) -> None:
    """Sessions that feed themselves end, or stand still: a single step keeps no node busy."""
    harm = await arena.endure(attack)
    harm.check(idle=True)


@pytest.mark.parametrize("attack", [each.__name__ for each in slots.ATTACKS])
async def test_honest_clients_are_served(attack: str, arena: Arena) -> None:
    """The harm is bounded, and nothing is left of it."""
    harm = await arena.endure(attack)
    harm.check()


async def test_no_session_is_left(arena: Arena) -> None:
    """After all of that every node has all its room again."""
    await arena.until_empty()
