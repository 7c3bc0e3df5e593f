"""Mends a session's chain of hops: replaces the dead, bridges what cannot reach its neighbour.

For each gap it has hops found and opened, linked to each other and to the living hop behind (`search`), puts them in
the chain and has them filled from the journal of the boundary before; `chain` says why no token can be wrong by that.
Opening a session is mending a chain that has no hops yet.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import trio

from protocol import limits
from protocol.errors import NoRoute
from protocol.model import Span
from protocol.numerics import Numerics
from swarm.events import Altered, Bridged, Event, OnEvent, Rerouted, Waiting
from swarm.routing.route import Route
from swarm.routing.view import View
from swarm.session.beside import open_beside
from swarm.session.blame import ACCUSED_BRIDGED, Blame
from swarm.session.chain import Chain
from swarm.session.hop_stream import HopStream
from swarm.session.lanes import NotCarried
from swarm.session.recovery import Gap
from swarm.session.search import Search
from swarm.session.watch import DEAD_AFTER_S


class Mender:
    """`on_open` is told of each new hop."""

    def __init__(
        self,
        chain: Chain,
        view: View,
        blame: Blame,
        on_event: OnEvent,
        on_open: Callable[[HopStream], None],
    ) -> None:
        self.events: list[Event] = []  # of a wait only how it began
        self._chain = chain
        self._view = view
        self._blame = blame
        self._on_event = on_event
        self._on_open = on_open
        self._waits_for: str | None = None  # as told last, in this mending

    async def fork(self, other: Chain, position: int) -> None:
        """Begin with what the hops of another session have at `position`; `mend` does what is lacking then."""
        view = self._view
        await _pace_forks(view, other.hops, 1 + position // limits.FORK_TOKENS)
        search = Search(self._chain, view, self._tell_of_wait)
        beside = await open_beside(self._chain, other, position, view.transport, search.note_failure)
        self._chain.begin_with(beside.hops, beside.lost_feeds, other.numerics)
        view.used(self._chain.spec.digest, [hop.planned for hop in beside.hops])
        for hop in beside.hops:
            self._on_open(hop)

    async def pace_forks(self, cost: int) -> None:
        """Wait until the hops let so much be forked in this session."""
        if cost:
            await _pace_forks(self._view, self._chain.hops, cost)

    async def mend(self, route: Route | None = None) -> None:
        """Return when all hops live; `route` is tried first. Raises: NoRoute; NotCarried, where lanes would have to
        be bridged."""
        chain = self._chain
        search = Search(chain, self._view, self._tell_of_wait)
        self._waits_for = None
        while True:
            await self._bridge_broken_links()
            gaps = chain.gaps()
            if not gaps:
                return
            gap = gaps[0]
            before = chain.before_gap(gap)
            if self._has_lanes and before is not None and before.accused >= ACCUSED_BRIDGED:
                raise NotCarried("the client carries one lane only")
            try:
                chosen = route or search.plan(gap.stages)
                route = None
                opened = await search.open_all(chosen.hops, chain.behind_gap(gap))
                if opened is not None:
                    self._put_in(gap, opened, search.began)
            except NoRoute:
                await search.look_further(gap.stages)

    def _put_in(self, gap: Gap, opened: list[HopStream], began: float) -> None:
        """Put new hops in the gap and have them filled: by the hop before, or by us where we feed them."""
        chain, first, numerics = self._chain, opened[0], self._chain.numerics
        dead = chain.splice(gap, opened)
        self._view.used(chain.spec.digest, [hop.planned for hop in opened])
        for hop in opened:
            self._on_open(hop)
        before = chain.before(first)
        if before is None or first.feed is not None:
            first.replay()
        elif before.accused < ACCUSED_BRIDGED:
            before.relink(first)
        else:  # it is said to send what nobody can use
            chain.bridge(before, first, fed_from=0)
            self._tell_of_bridge(before, first, "what the first one sends is in doubt")
        self._tell_of_reroutes(dead, opened, trio.current_time() - began)
        for stages, was, now in changes(numerics, chain.numerics):
            self._tell(Altered(chain.id, stages, was, now))

    async def _bridge_broken_links(self) -> None:
        """Where a living hop cannot reach the next living one, carry what passes between them."""
        chain = self._chain
        for before in chain.hops:
            reason, behind = before.link_down, chain.behind(before)
            if before.failure or reason is None or behind is None:
                continue
            before.forget_cut()
            if behind.feed is not None or not await self._answers(behind):
                continue
            if self._has_lanes:
                before.cut_off(reason)
                raise NotCarried("the client carries one lane only")
            chain.bridge(before, behind, fed_from=chain.sent)
            self._tell_of_bridge(before, behind, reason)

    @property
    def _has_lanes(self) -> bool:
        return len(self._chain.journal.lanes) > 1

    async def _answers(self, hop: HopStream) -> bool:
        """Whether a hop answers a ping; one that does not is given up, as if nobody had said that it is cut off."""
        asked_at = trio.current_time()
        with trio.move_on_after(DEAD_AFTER_S):
            await hop.ping()
            while hop.failure is None and hop.claims.pong_at < asked_at:
                await self._chain.wait_changed()
        if hop.failure is None and hop.claims.pong_at < asked_at:
            self._blame.lose(hop, "does not answer", honest=True)
        return hop.failure is None

    # -- telling

    def _tell_of_reroutes(
        self, dead: Sequence[HopStream], opened: Sequence[HopStream], seconds: float
    ) -> None:
        peers = tuple(hop.peer for hop in opened)
        for hop in dead:
            self._tell(
                Rerouted(self._chain.id, hop.peer, hop.span, hop.failure or "", peers, seconds, hop.fault)
            )

    def _tell_of_bridge(self, before: HopStream, behind: HopStream, reason: str) -> None:
        self._tell(Bridged(self._chain.id, (before.peer, behind.peer), reason))

    def _tell_of_wait(self, error: NoRoute, left_s: float) -> None:
        waiting = Waiting(self._chain.id, error.missing, str(error), left_s)
        known, self._waits_for = self._waits_for, waiting.text
        self._tell(waiting, keep=waiting.text != known)

    def _tell(self, event: Event, *, keep: bool = True) -> None:
        if keep:
            self.events.append(event)
        self._on_event(event)


async def _pace_forks(view: View, hops: Sequence[HopStream], cost: int) -> None:
    """Who forks faster than hops let it would be turned away by them, and have others filled in their place."""
    now = trio.current_time()
    await trio.sleep(max((view.forks.wait_s(hop.peer, now, cost) for hop in hops), default=0.0))


def changes(
    before: Mapping[int, Numerics], after: Mapping[int, Numerics]
) -> list[tuple[Span, Numerics, Numerics]]:
    """Spans of stages whose numerics are other ones than before, with both; in order."""
    found: list[tuple[Span, Numerics, Numerics]] = []
    for stage in sorted(before.keys() & after.keys()):
        was, now = before[stage], after[stage]
        if was == now:
            continue
        if found and found[-1][0].stop == stage and found[-1][1:] == (was, now):
            found[-1] = Span(found[-1][0].start, stage + 1), was, now
        else:
            found.append((Span(stage, stage + 1), was, now))
    return found
