"""The attacks by name. Each goes on until it is cancelled; none knows the criterion it is measured by."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

from tests.attack.attacks import dials, hops, loops, memory, packets, records, slots
from tests.attack.stranger import Field

Attack = Callable[[Field], Awaitable[None]]

_ALL: Final[tuple[Attack, ...]] = (
    *records.ATTACKS,
    *loops.ATTACKS,
    *memory.ATTACKS,
    *dials.ATTACKS,
    *slots.ATTACKS,
    *packets.ATTACKS,
    *hops.ATTACKS,
)
ATTACKS: Final[dict[str, Attack]] = {attack.__name__: attack for attack in _ALL}
