"""What time it is in the swarm, where this machine's clock is wrong: pure.

Records hold for a minute, so a clock that is off by more sees a dead swarm. A node's own record, which comes first in
its map, was issued at most `AGE_S` ago; so every node that answers tells the time.
"""

from __future__ import annotations

import statistics
from typing import Final

from protocol import limits

# A node speaks anew after a third of a record's life, give or take a fifth.
AGE_S: Final = 1.2 * limits.RECORD_LIFE_S / 3
# Honest clocks and the way of a message differ by this much.
TOLERANCE_S: Final = 6.0
# Nobody's clock shows a later time: a sequence number, which is made of it, has 53 bits.
LATEST_S: Final = 8e9
# Nodes whose time is remembered.
NODES: Final = 256


class SwarmClock:
    """How far this machine's clock is off, by those who answered it; `now` is what it shows."""

    def __init__(self) -> None:
        self._offsets: dict[str, float] = {}

    def heard(self, peer: str, issued: float, now: float) -> None:
        """`peer` answered, and its own record was issued then, by its own clock."""
        self._offsets.pop(peer, None)
        if issued > LATEST_S:
            return
        self._offsets[peer] = issued - now
        if len(self._offsets) > NODES:
            odd = (known for known, offset in self._offsets.items() if not _agrees(offset))
            del self._offsets[next(odd, next(iter(self._offsets)))]

    @property
    def offset_s(self) -> float:
        """What to add to this machine's clock: nothing, unless all who answered contradict it.

        So nobody shifts a correct clock that one honest node confirms.
        """
        offsets = self._offsets.values()
        if not offsets or any(_agrees(offset) for offset in offsets):
            return 0.0
        return statistics.median(offsets) + AGE_S / 2

    def complaint(self) -> str:
        """One line on whose clock is wrong, and by how much; empty if nobody's is."""
        wrong = {peer: offset for peer, offset in self._offsets.items() if not _agrees(offset)}
        if not wrong:
            return ""
        if self.offset_s:
            return f"this machine's clock is {_off(-self.offset_s)} that of every node that answers: set it"
        peer, offset = max(wrong.items(), key=lambda entry: abs(entry[1]))
        return f"the clock of node {peer} is {_off(offset + AGE_S / 2)} this machine's and that of others"


def _agrees(offset: float) -> bool:
    return -AGE_S - TOLERANCE_S <= offset <= TOLERANCE_S


def _off(by_s: float) -> str:
    return f"about {abs(by_s):.0f} s {'ahead of' if by_s > 0 else 'behind'}"
