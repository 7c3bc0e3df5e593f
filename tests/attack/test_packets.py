"""Datagrams that no peer of ours would send: see the package for the bounds."""

from __future__ import annotations

import pytest

from tests.attack.arena import Arena
from tests.attack.attacks import packets

pytestmark = [pytest.mark.attack, pytest.mark.timeout(480)]


@pytest.mark.parametrize("attack", [each.__name__ for each in packets.ATTACKS])
async def test_honest_clients_are_served(attack: str, arena: Arena) -> None:
    """Those that stay and those that come, while others begin handshakes and end none."""
    harm = await arena.endure(attack)
    harm.check()
