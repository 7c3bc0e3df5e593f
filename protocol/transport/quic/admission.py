"""Who may begin a handshake, and whose connection ends when all together hold too much. Pure.

Addresses that are not proven may be anybody's, so they share one allowance, and nobody else's is charged for them.
`now` is in seconds on a clock that does not jump.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum, auto

from protocol.transport.allowance import Allowance
from protocol.transport.limits import (
    ANSWERS_PER_S,
    HANDSHAKES_PER_S,
    ORIGIN_HANDSHAKES_PER_S,
    PORT_HANDSHAKES_BURST,
    PORT_HANDSHAKES_PER_S,
    RESERVED_HANDSHAKES_BURST,
    RESERVED_HANDSHAKES_PER_S,
    UNPROVEN_HANDSHAKES_BURST,
    UNPROVEN_HANDSHAKES_PER_S,
)

_ALL = ""


class Verdict(Enum):
    """What becomes of a first packet."""

    ENTER = auto()
    PROVE = auto()  # that its sender receives at the address it sends from
    IGNORE = auto()  # it comes again, if its sender means it


class Door:
    """How many handshakes begin, each second, in all, of one origin and of one address and port."""

    def __init__(self) -> None:
        self._all = Allowance(HANDSHAKES_PER_S, HANDSHAKES_PER_S)
        self._origins = Allowance(ORIGIN_HANDSHAKES_PER_S, ORIGIN_HANDSHAKES_PER_S)
        self._reserved = Allowance(RESERVED_HANDSHAKES_PER_S, RESERVED_HANDSHAKES_BURST)
        self._ports = Allowance(PORT_HANDSHAKES_PER_S, PORT_HANDSHAKES_BURST)
        self._unproven = Allowance(UNPROVEN_HANDSHAKES_PER_S, UNPROVEN_HANDSHAKES_BURST)
        self._answers = Allowance(ANSWERS_PER_S, ANSWERS_PER_S)

    def knock(self, origin: str, port: str, *, proven: bool, now: float) -> Verdict:
        """What becomes of a first packet from `port` (an address with its port) of `origin`."""
        if not proven:
            if self._unproven.take(_ALL, now):
                return Verdict.ENTER
            return Verdict.PROVE if self.may_answer(now) else Verdict.IGNORE
        if not (self._ports.take(port, now) and self._origins.take(origin, now)):
            return Verdict.IGNORE
        # Though others have used up what there is for all, each origin has a little of its own.
        if self._all.take(_ALL, now) or self._reserved.take(origin, now):
            return Verdict.ENTER
        return Verdict.IGNORE

    def may_answer(self, now: float) -> bool:
        """Whether one more packet of a stranger may be answered without a connection."""
        return self._answers.take(_ALL, now)


def too_much(held: Sequence[tuple[str, int]], most: int) -> list[int]:
    """Which of `held` (an origin and its bytes, each) have to go, so that no more than `most` bytes are held.

    Of the origin that holds the most, the one that holds the most, again and again.
    """
    of_origin: dict[str, int] = {}
    largest: dict[str, list[int]] = {}  # of each origin, the largest last
    for index in sorted(range(len(held)), key=lambda index: held[index][1]):
        origin, size = held[index]
        of_origin[origin] = of_origin.get(origin, 0) + size
        largest.setdefault(origin, []).append(index)
    total = sum(of_origin.values())
    gone = []
    while total > most:
        worst = max(of_origin, key=of_origin.__getitem__)
        index = largest[worst].pop()
        gone.append(index)
        of_origin[worst] -= held[index][1]
        total -= held[index][1]
    return gone
