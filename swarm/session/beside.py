"""Opens a session beside another one, at the same hops, to begin with what that has at a position."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from protocol.errors import LocalProtocolError, PeerUnavailable, RemoteProtocolError, SwarmError
from protocol.journal import Journal
from protocol.messages import Fork, NextHop, Open
from protocol.transport.base import Transport
from swarm.session.chain import Chain
from swarm.session.hop_stream import HopStream, NotForked, open_each, open_hop


@dataclass(slots=True)
class Beside:
    """The hops that were forked, and of those that were not what the client fed them, by their first stage."""

    hops: list[HopStream] = field(default_factory=list)
    lost_feeds: dict[int, Journal] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Plan:
    """One hop of the other session, what is asked of it, and the client's journal of what it was fed, if any."""

    old: HopStream
    request: Open
    feed: Journal | None


async def open_beside(
    chain: Chain,
    other: Chain,
    position: int,
    transport: Transport,
    note_failure: Callable[[HopStream, SwarmError], None],
) -> Beside:
    """Fork all hops of `other` at once for `chain`, whose journal is the fork of the other's at `position`.

    A hop that fails, or cannot, is left out: what it lacks is mended as ever. `note_failure` is told of those that
    failed.
    """
    after = chain.sent
    try:
        plans = _plans(chain, other, position, after)
    except LocalProtocolError:  # a hop that the client feeds is being filled
        return Beside()
    opened: list[HopStream | None] = [None] * len(plans)

    async def open_one(index: int) -> None:
        plan = plans[index]
        if plan.old.failure is not None:
            return
        try:
            opened[index] = await open_hop(transport, plan.old.planned, plan.request, chain.spec.hidden_size)
        except NotForked:
            pass
        except (PeerUnavailable, RemoteProtocolError) as error:
            note_failure(plan.old, error)

    await open_each(open_one, opened)
    beside = Beside()
    for plan, hop in zip(plans, opened, strict=True):
        if hop is not None:
            hop.begin_forked(after)
            if plan.feed is not None:
                hop.take_feed(plan.feed, 0 if plan.old.fed_by_us else after)
            beside.hops.append(hop)
        elif plan.feed is not None:
            beside.lost_feeds[plan.old.span.start] = plan.feed
    return beside


def _plans(chain: Chain, other: Chain, position: int, after: int) -> list[_Plan]:
    """What to ask of each hop: those that feed each other do so again, and what the client carries it carries.

    Raises: LocalProtocolError.
    """
    hops: Sequence[HopStream] = other.hops
    places = [NextHop(hop.peer, secrets.token_bytes(16)) for hop in hops]
    spec, plans = chain.spec, []
    for index, hop in enumerate(hops):
        behind = hops[index + 1] if index + 1 < len(hops) else None
        carried = behind is not None and behind.feed is not None
        fork = Fork(hop.session, position, after)
        following = places[index + 1] if behind is not None and not carried else None
        request = Open(
            places[index].session,
            spec.digest,
            hop.span,
            spec.max_tokens,
            following,
            carried,
            fork,
            spec.reuse,
        )
        plans.append(_Plan(hop, request, _feed(chain, hop, index, position, after)))
    return plans


def _feed(chain: Chain, hop: HopStream, index: int, position: int, after: int) -> Journal | None:
    """What the client has fed it. Raises: LocalProtocolError, if that is not all."""
    if index == 0:
        return chain.journal
    return None if hop.feed is None else hop.feed.fork(position, after)
