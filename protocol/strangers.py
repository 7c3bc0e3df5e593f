"""Peers that were not met, by who brought them: whose turn it is, and who gives way. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, zip_longest
from typing import Final, TypeVar

from protocol.transport.origin import HERE

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Source:
    """Who handed a record over, from which block of addresses, and whether we `asked` for it or it was pushed."""

    peer: str
    origin: str
    asked: bool


OURS: Final = Source("", HERE, True)


class Strangers:
    """Peers by their `Source`; each is under one source at a time, which the caller knows."""

    def __init__(self) -> None:
        self._brought: dict[Source, dict[str, None]] = {}

    def add(self, peer: str, source: Source) -> None:
        """`source` has brought `peer`."""
        self._brought.setdefault(source, {})[peer] = None

    def discard(self, peer: str, source: Source) -> None:
        """`peer` is no stranger of `source`, whether or not it was one."""
        brought = self._brought.get(source, {})
        brought.pop(peer, None)
        if not brought:
            self._brought.pop(source, None)

    def in_turn(self) -> Iterator[str]:
        """Whom peers that we asked named, then whom others pushed; one of each source in turn, in its order."""
        for asked in (True, False):
            yield from alternate(
                [tuple(peers) for source, peers in self._brought.items() if source.asked == asked]
            )

    def going(self, count: int) -> list[str]:
        """About `count` that give way first.

        What was pushed before what we asked for; of that the block's that brought the most, of that the one peer's
        who brought the most, and of those the ones heard first.
        """
        pushed = {source: peers for source, peers in self._brought.items() if not source.asked}
        origins: dict[str, dict[Source, dict[str, None]]] = {}
        for source, peers in (pushed or self._brought).items():
            origins.setdefault(source.origin, {})[source] = peers
        sources = max(origins.values(), key=lambda found: sum(map(len, found.values())))
        fullest = max(sources.values(), key=len)
        if len(fullest) > 1:
            return list(islice(fullest, min(count, max(1, len(fullest) // 8))))
        # one each: the first of them
        return [peer for brought in islice(sources.values(), count) for peer in brought]


def alternate(queues: Iterable[Sequence[T]]) -> Iterator[T]:
    """The first of each queue, the second of each, and so on."""
    for row in zip_longest(*queues):
        yield from (entry for entry in row if entry is not None)
