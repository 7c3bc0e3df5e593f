"""The search for new hops: plans among those who are known, asks them, and looks further where that is not enough."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Final

import trio

from protocol.errors import Busy, NoRoute, PeerUnavailable, RemoteProtocolError, SwarmError
from protocol.messages import NextHop, Open
from protocol.model import Span
from swarm.routing.bans import PAUSE_S
from swarm.routing.route import Hop, Need, Route, serve_command
from swarm.routing.view import View
from swarm.session.chain import Chain
from swarm.session.hop_stream import HopStream, open_each, open_hop

# Between looks at the map while nobody serves some stages.
RETRY_EVERY_S: Final = 0.5
# What a node said so lately is not asked again, whichever session it was said to: a node hands out a map a second to
# each client, and is taken for dead where it hands out none.
SHARED_S: Final = 1.0
# The last resort before a session fails; the user waits for it.
DHT_SEARCH_S: Final = 4.0
# Nodes whose reasons are in one error's line.
REASONS_SHOWN: Final = 4
# Then the pause of a banned peer may have to pass that alone serves what is missing; not that of one that lied.
LAST_PAUSE_S: Final = 2 * PAUSE_S


@dataclass(frozen=True, slots=True)
class _Refusal:
    """What kept a hop from being opened while a chain is mended; `final`: its peer is not asked once more."""

    why: str
    final: bool


class Search:
    """Of one mending, from now on. `on_wait` is told, again and again, while there is nothing but to wait."""

    def __init__(self, chain: Chain, view: View, on_wait: Callable[[NoRoute, float], None]) -> None:
        self.began = trio.current_time()
        self._chain = chain
        self._spec = chain.spec
        self._view = view
        self._on_wait = on_wait
        self._refusals: dict[str, _Refusal] = {}

    def plan(self, stages: Span) -> Route:
        """The best route now. Raises: NoRoute."""
        return self._plan(stages, self._tried())

    async def open_all(self, hops: Sequence[Hop], behind: HopStream | None) -> list[HopStream] | None:
        """Open all hops at once, each linked to the next and the last to `behind`; None if one failed."""
        spec = self._spec
        places = [NextHop(hop.peer, secrets.token_bytes(16)) for hop in hops]
        following: list[NextHop | None] = [*places[1:], behind.address if behind is not None else None]
        opened: list[HopStream | None] = [None] * len(hops)

        async def open_one(index: int) -> None:
            hop, next_hop = hops[index], following[index] if spec.direct else None
            bridged = next_hop is None and following[index] is not None
            session = places[index].session
            request = Open(
                session, spec.digest, hop.span, spec.max_tokens, next_hop, bridged, reuse=spec.reuse
            )
            try:
                opened[index] = await open_hop(self._view.transport, hop, request, spec.hidden_size)
            except (PeerUnavailable, RemoteProtocolError) as error:
                self._note_refusal(hop, error)

        await open_each(open_one, opened)
        found = [hop for hop in opened if hop is not None]
        if len(found) == len(hops):
            return found
        for hop in found:
            hop.fail("not needed")
        return None

    async def look_further(self, stages: Span) -> None:
        """Ask the whole swarm again. Raises: NoRoute, if there is still no route and no time to wait."""
        spec, view, tried = self._spec, self._view, self._tried()
        await view.refresh(lambda: self._no_route(stages, tried) is None, lately_s=SHARED_S)
        error = self._no_route(stages, tried)
        if error is None:
            return
        left_s = self.began + spec.wait_s - trio.current_time()
        if left_s > 0:
            self._on_wait(error, left_s)
            await trio.sleep(RETRY_EVERY_S)
            return
        with trio.move_on_after(DHT_SEARCH_S):
            await view.search_dht(spec.digest)
        tried = self._tried()
        pause_s = view.pause_s(spec.digest, error, spec.max_tokens, tried)
        if pause_s is not None:
            await trio.sleep(min(pause_s, LAST_PAUSE_S))
        error = self._no_route(stages, tried)
        if error is not None:
            raise self._explained(error)

    def _plan(self, stages: Span, tried: Collection[str] | None) -> Route:
        spec = self._spec
        need = Need(stages, spec.blocks, spec.max_tokens, self._chain.numerics)
        return self._view.plan(spec.digest, need, tried)

    def _no_route(self, stages: Span, tried: Collection[str] | None) -> NoRoute | None:
        try:
            self._plan(stages, tried)
        except NoRoute as error:
            return error
        return None

    def _tried(self) -> Collection[str] | None:
        """Who gets no other chance: as long as there is time to wait, everybody does.

        After that only who had no room for now, once: sessions end, and who has many makes room for who has none.
        """
        if trio.current_time() - self.began < self._spec.wait_s:
            return None
        return {peer for peer, refusal in self._refusals.items() if refusal.final}

    def note_failure(self, hop: HopStream, error: SwarmError) -> None:
        """A hop of another session let none begin beside it."""
        self._note_refusal(hop.planned, error)

    def _note_refusal(self, hop: Hop, error: SwarmError) -> None:
        again = isinstance(error, Busy) and hop.peer not in self._refusals
        self._refusals[hop.peer] = _Refusal(str(error), final=not again)
        now = trio.current_time()
        if isinstance(error, Busy):
            self._view.bans.pause(hop.peer, now, error.retry_after_s)
        else:
            self._view.bans.ban(hop.peer, now, honest=isinstance(error, PeerUnavailable))

    def _explained(self, error: NoRoute) -> NoRoute:
        """The error with what nodes said when asked, and the commands that would help."""
        shown = list(self._refusals.items())[:REASONS_SHOWN]
        reasons = "".join(f"; {peer}: {refusal.why}" for peer, refusal in shown)
        if len(self._refusals) > len(shown):
            reasons += f"; and {len(self._refusals) - len(shown)} more"
        option = self._view.precisions.node_option
        commands = " and ".join(
            serve_command(Span(*pair), self._spec.blocks, option=option) for pair in error.missing
        )
        return NoRoute(f"{error}{reasons}. To serve them, run on another machine: {commands}", error.missing)
