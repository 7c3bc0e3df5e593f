"""When a hop that says nothing is asked, and when it is given up; pure.

A hop answers pings from its event loop, never behind a computation: silence means that the process is gone,
stopped or cut off, not that it computes. Slow steps are found by what pongs say of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from swarm.hop import HopLink

# A hop from which nothing came for this long while a step is out is asked whether it is there ...
PING_AFTER_S: Final = 0.5
# ... and given up after this long: the event loop of a busy machine may stall for a second, hardly for more.
DEAD_AFTER_S: Final = 3.0
# A hop says it sent a step on, the next one (which answers pings) has not got it: the link between is broken.
LINK_STALL_S: Final = 2.0
# A hop that answers pings but does not finish a step.
STEP_STALL_S: Final = 120.0


@dataclass(frozen=True, slots=True)
class Ask:
    """Ping this hop."""

    link: HopLink


@dataclass(frozen=True, slots=True)
class GiveUp:
    """This hop failed. `honest`: it is gone or cut off, rather than misbehaving."""

    link: HopLink
    reason: str
    honest: bool


@dataclass(frozen=True, slots=True)
class Unlinked:
    """What this hop sends on does not arrive at the next."""

    link: HopLink


def look(links: Sequence[HopLink], now: float, since: float) -> Iterator[Ask | GiveUp | Unlinked]:
    """What to do about the hops, a step being out `since` then."""
    before: HopLink | None = None
    for link in links:
        if link.failure is None:
            yield from _look_at(link, before, now, since)
        before = link


def _look_at(
    link: HopLink, before: HopLink | None, now: float, since: float
) -> Iterator[Ask | GiveUp | Unlinked]:
    silent_s = now - max(link.heard_at, since)
    if silent_s > DEAD_AFTER_S:
        yield GiveUp(link, f"silent for {silent_s:.1f} s", True)
        return
    if silent_s > PING_AFTER_S and not link.ping_is_out:
        yield Ask(link)
    if link.received > link.acked and now - max(link.acked_at, since) > STEP_STALL_S:
        yield GiveUp(link, f"stuck in a step for {STEP_STALL_S:g} s", False)
    elif before is not None and before.failure is None and link.feed is None:
        behind_s = now - before.acked_at
        # both answered since: else one of them is cut off, and there is nothing to bridge
        asked_since = min(link.pong_at, before.heard_at) > before.acked_at + LINK_STALL_S / 2
        if before.acked > link.received and behind_s > LINK_STALL_S and asked_since:
            yield Unlinked(before)
