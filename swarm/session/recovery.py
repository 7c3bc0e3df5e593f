"""Which stages of a session need new hops, and who fills their caches; pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from protocol.model import Span


@dataclass(frozen=True, slots=True)
class Place:
    """One hop of a session as recovery sees it."""

    span: Span
    alive: bool
    filled: bool  # its caches hold all that is through; a new hop's do not, until its filling is done


@dataclass(frozen=True, slots=True)
class Gap:
    """Stages without a living hop: hops `first` to `last` (exclusive), if there are such, are to be replaced."""

    first: int
    last: int
    stages: Span


def find_gaps(wanted: Span, places: Sequence[Place]) -> list[Gap]:
    """Maximal runs of stages whose hops are dead or missing, left to right; without any hops, all of `wanted`.

    A hop that was being filled through a hop that died belongs to the gap: it holds nothing worth keeping.

    Since every hop keeps the journal of the boundary after it, a living hop before a gap can fill it, whatever
    died further on; where the client feeds the first hop of the gap, the client can. So each gap has a living keeper.
    """
    gaps, index, at = [], 0, wanted.start
    while at < wanted.stop:
        if index < len(places) and places[index].span.start == at and places[index].alive:
            at = places[index].span.stop
            index += 1
            continue
        first, start = index, at
        while index < len(places) and not (places[index].alive and places[index].filled):
            index += 1
        at = places[index].span.start if index < len(places) else wanted.stop
        gaps.append(Gap(first, index, Span(start, at)))
    return gaps
