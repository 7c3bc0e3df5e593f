"""Mends a session's chain of hops: replaces the dead, bridges what cannot reach its neighbour.

For each gap it plans hops, opens them linked to each other and to the living hop behind, and has them filled from
the journal of the boundary before. Opening a session is mending a chain that has no hops yet.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Collection, Sequence
from typing import Final

import trio

from protocol.errors import Busy, NoRoute, PeerUnavailable, RemoteProtocolError, SwarmError
from protocol.journal import Journal
from protocol.messages import NextHop, Open
from protocol.model import Span
from swarm.events import Bridged, Event, OnEvent, Rerouted, Waiting
from swarm.routing.bans import PAUSE_S
from swarm.routing.route import Hop, Route, serve_command
from swarm.routing.view import View
from swarm.session.chain import Chain
from swarm.session.hop_stream import HopStream, open_hop
from swarm.session.outputs import hidden_bytes
from swarm.session.recovery import Gap
from swarm.session.watch import DEAD_AFTER_S

# Between looks at the map while nobody serves some stages.
RETRY_EVERY_S: Final = 0.5
# The last resort before a session fails; the user waits for it.
DHT_SEARCH_S: Final = 4.0
# So many of those whom a hop feeds may fail over it, until we carry what it sends them and so see it ourselves, ...
ACCUSED_BRIDGED: Final = 2
# ... and until it is replaced.
ACCUSED_REPLACED: Final = 4
# Patience doubles for a peer that was too slow; this often reaches the longest that `watch` waits from its shortest.
MOST_DOUBLINGS: Final = 5
# A hop that was too slow is left alone for this long where others serve what it does: its load may have passed then.
SLOW_REST_S: Final = 30.0
# Nodes whose reasons are in one error's line.
REASONS_SHOWN: Final = 4
# Then the pause of a banned peer may have to pass that alone serves what is missing; not that of one that lied.
LAST_PAUSE_S: Final = 2 * PAUSE_S


class Mender:
    """`on_open` is told of each new hop, before anything is sent to it."""

    def __init__(
        self, chain: Chain, view: View, on_event: OnEvent, on_open: Callable[[HopStream], None]
    ) -> None:
        self.events: list[Event] = []  # of a wait only how it began
        self._chain = chain
        self._view = view
        self._on_event = on_event
        self._on_open = on_open
        self._waits_for: str | None = None  # what was told last

    async def mend(self, route: Route | None = None) -> None:
        """Return when all hops live; `route` is tried first. Raises: NoRoute."""
        chain, began = self._chain, trio.current_time()
        refusals: dict[str, str] = {}
        self._waits_for = None
        while True:
            await self._bridge_broken_links()
            gaps = chain.gaps()
            if not gaps:
                return
            try:
                chosen = route or self._plan(gaps[0].stages, self._tried(began, refusals))
                route = None
                opened = await self._open_all(chosen.hops, self._behind(gaps[0]), refusals)
                if opened is not None:
                    self._splice(gaps[0], opened, began)
            except NoRoute:
                await self._look_further(gaps[0].stages, began, refusals)

    def lose(self, link: HopStream, reason: str, *, honest: bool) -> None:
        """A hop of the chain failed: end it and ban its peer."""
        if link.failure is None and link in self._chain.links:
            self._view.bans.ban(link.hop.peer, trio.current_time(), honest=honest)
        link.fail(reason)
        self._chain.notify()

    def lose_over_input(self, link: HopStream, reason: str) -> None:
        """A hop got wrong what it was sent, or says that it was sent something wrong."""
        if link.fed_by_us:
            self.lose(link, reason, honest=False)
        else:
            self.doubt(link, reason)

    def doubt(self, link: HopStream, reason: str) -> None:
        """A hop failed in a way that the hop before it may have brought about.

        Neither is banned for long on the word of the other. The one that failed is replaced; where that happens
        again, we carry what passes between them; where even that does not help, the one before is replaced.
        """
        before = self._chain.before(link)
        if link.failure is None and before is not None:
            before.accused += 1
            if before.accused == ACCUSED_REPLACED:
                self.lose(before, "those whom it feeds fail", honest=True)
        self.lose(link, reason, honest=True)

    def leave_slow(self, link: HopStream, reason: str, *, honest: bool) -> None:
        """A hop that answers does not get on. That it answers is no sign that it would if it were asked again."""
        self._chain.slow[link.hop.peer] += 1
        if honest and not link.fed_by_us:
            self.doubt(link, reason)
        else:
            self.lose(link, reason, honest=honest)
        self._view.bans.pause(link.hop.peer, trio.current_time(), SLOW_REST_S, alone_s=PAUSE_S)

    # -- finding and opening hops

    def _plan(self, stages: Span, tried: Collection[str] | None) -> Route:
        spec = self._chain.spec
        return self._view.plan(spec.digest, spec.blocks, stages, spec.max_tokens, tried)

    def _no_route(self, stages: Span, tried: Collection[str] | None) -> NoRoute | None:
        try:
            self._plan(stages, tried)
        except NoRoute as error:
            return error
        return None

    def _tried(self, began: float, refusals: dict[str, str]) -> Collection[str] | None:
        """Who gets no other chance: as long as there is time to wait, everybody does."""
        return None if trio.current_time() - began < self._chain.spec.wait_s else refusals.keys()

    async def _look_further(self, stages: Span, began: float, refusals: dict[str, str]) -> None:
        """Ask the whole swarm again. Raises: NoRoute, if there is still no route and no time to wait."""
        chain, view, tried = self._chain, self._view, self._tried(began, refusals)
        spec = chain.spec
        await view.refresh(lambda: self._no_route(stages, tried) is None)
        error = self._no_route(stages, tried)
        if error is None:
            return
        left_s = began + spec.wait_s - trio.current_time()
        if left_s > 0:
            self._tell(Waiting(chain.id, error.missing, str(error), left_s))
            await trio.sleep(RETRY_EVERY_S)
            return
        with trio.move_on_after(DHT_SEARCH_S):
            await view.search_dht(spec.digest)
        pause_s = view.pause_s(spec.digest, error, spec.max_tokens, refusals.keys())
        if pause_s is not None:
            await trio.sleep(min(pause_s, LAST_PAUSE_S))
        error = self._no_route(stages, refusals.keys())
        if error is not None:
            raise explained(error, refusals, spec.blocks)

    def _behind(self, gap: Gap) -> HopStream | None:
        links = self._chain.links
        return links[gap.last] if gap.last < len(links) else None

    async def _open_all(
        self, hops: Sequence[Hop], behind: HopStream | None, refusals: dict[str, str]
    ) -> list[HopStream] | None:
        """Open all hops at once, each linked to the next and the last to `behind`; None if one failed."""
        spec = self._chain.spec
        places = [NextHop(hop.peer, secrets.token_bytes(16)) for hop in hops]
        following: list[NextHop | None] = [*places[1:], behind.address() if behind is not None else None]
        opened: list[HopStream | None] = [None] * len(hops)

        async def open_one(index: int) -> None:
            hop, next_hop = hops[index], following[index] if spec.direct else None
            bridged = next_hop is None and following[index] is not None
            session = places[index].session
            request = Open(session, spec.digest, hop.span, spec.max_tokens, next_hop, bridged)
            try:
                opened[index] = await open_hop(self._view.transport, hop, request)
            except (PeerUnavailable, RemoteProtocolError) as error:
                self._note_refusal(hop, error, refusals)

        async with trio.open_nursery() as nursery:
            for index in range(len(hops)):
                nursery.start_soon(open_one, index)
        links = [link for link in opened if link is not None]
        if len(links) == len(hops):
            return links
        for link in links:
            link.fail("not needed")
        return None

    def _note_refusal(self, hop: Hop, error: SwarmError, refusals: dict[str, str]) -> None:
        refusals[hop.peer] = str(error)
        now = trio.current_time()
        if isinstance(error, Busy):
            self._view.bans.pause(hop.peer, now, error.retry_after_s)
        else:
            self._view.bans.ban(hop.peer, now, honest=isinstance(error, PeerUnavailable))

    # -- putting them in place

    def _splice(self, gap: Gap, opened: list[HopStream], began: float) -> None:
        """Put new hops in the gap and have them filled: by the hop before, or by us where we feed them."""
        chain, behind = self._chain, self._behind(gap)
        dead = chain.links[gap.first : gap.last]
        feed = chain.journal if gap.first == 0 else dead[0].feed
        for link in dead:
            link.fail("was being filled by a hop that died")
        settled = chain.settled
        chain.links[gap.first : gap.last] = opened
        self._view.used(chain.spec.digest, [link.hop for link in opened])
        opened[0].feed = feed
        if not chain.spec.direct:
            for link in opened[1:]:
                link.feed = Journal(chain.spec.max_tokens)
        elif behind is not None:
            behind.feed = None
        fill_until = opened[-1].hop.span.stop
        for link in opened:
            link.fill_until, link.filled_at = fill_until, settled
            link.patience = 1 << min(chain.slow[link.hop.peer], MOST_DOUBLINGS)
            if link.bridged_from is not None:
                # its fills come to us as well, if there is another hop to be filled with them
                link.claims.owe_results(settled if link is opened[-1] else 0, trio.current_time())
                link.allow(hidden_bytes(chain.spec.hidden_size))
            self._on_open(link)
        chain.rounds += 1
        if feed is not None:
            for step in feed.replay(settled, fill_until):
                opened[0].post(step)
        else:
            self._join(chain.links[gap.first - 1], opened[0], settled, fill_until)
        self._report(dead, opened, trio.current_time() - began)

    def _join(self, before: HopStream, behind: HopStream, settled: int, fill_until: int) -> None:
        """Have a living hop fill the new one behind it; through us, if it is said to send what nobody can use."""
        if before.accused < ACCUSED_BRIDGED:
            before.relink(behind.address(), settled, fill_until)
            return
        self._chain.bridge(before, behind, fed_from=0)
        peers = before.hop.peer, behind.hop.peer
        self._tell(Bridged(self._chain.id, peers, "what the first one sends is in doubt"))

    def _report(self, dead: Sequence[HopStream], opened: Sequence[HopStream], seconds: float) -> None:
        peers = tuple(link.hop.peer for link in opened)
        for link in dead:
            reason = link.failure or ""
            self._tell(Rerouted(self._chain.id, link.hop.peer, link.hop.span, reason, peers, seconds))

    async def _bridge_broken_links(self) -> None:
        """Where a living hop cannot reach the next living one, carry what passes between them."""
        chain = self._chain
        for before in list(chain.links):
            reason, behind = before.link_down, chain.behind(before)
            if before.failure or reason is None or behind is None:
                continue
            before.link_down = None
            if behind.feed is not None or not await self._answers(behind):
                continue
            chain.bridge(before, behind, fed_from=chain.sent)
            self._tell(Bridged(chain.id, (before.hop.peer, behind.hop.peer), reason))

    def _tell(self, event: Event) -> None:
        if not isinstance(event, Waiting):
            self.events.append(event)
        elif event.text != self._waits_for:
            self._waits_for = event.text
            self.events.append(event)
        self._on_event(event)

    async def _answers(self, link: HopStream) -> bool:
        """Whether a hop answers a ping; one that does not is given up, as if nobody had said that it is cut off."""
        asked_at = trio.current_time()
        with trio.move_on_after(DEAD_AFTER_S):
            await link.ping()
            while link.failure is None and link.claims.pong_at < asked_at:
                await self._chain.wait_changed()
        if link.failure is None and link.claims.pong_at < asked_at:
            self.lose(link, "does not answer", honest=True)
        return link.failure is None


def explained(error: NoRoute, refusals: dict[str, str], blocks: int) -> NoRoute:
    """The error with what nodes said when asked, and the commands that would help."""
    shown = list(refusals.items())[:REASONS_SHOWN]
    reasons = "".join(f"; {peer}: {why}" for peer, why in shown)
    if len(refusals) > len(shown):
        reasons += f"; and {len(refusals) - len(shown)} more"
    commands = " and ".join(serve_command(Span(*pair), blocks) for pair in error.missing)
    return NoRoute(f"{error}{reasons}. To serve them, run on another machine: {commands}", error.missing)
