"""The client's view of the swarm: whose announcements it holds, who answers, how far away they are."""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace
from itertools import islice
from typing import Final

import trio

from protocol import limits
from protocol.book import RecordBook
from protocol.choice import choose_model, is_called
from protocol.errors import (
    ConfigError,
    NoRoute,
    SwarmError,
    Unreachable,
)
from protocol.hints import SWARM_KEY, model_key
from protocol.model import Span
from protocol.records import Announcement
from protocol.transport.addresses import parse_address
from protocol.transport.allowance import Allowance
from protocol.transport.base import PeerAddrs, Transport
from protocol.weights import Trust, Verdict, Witness
from swarm.events import Noticed, OnEvent
from swarm.routing.bans import Bans
from swarm.routing.precision import ANYTHING, Precisions
from swarm.routing.probes import PROBE_ROUND_S, Probes
from swarm.routing.route import BEGIN_TOKENS, Hop, Need, Network, Route, missing_stages, plan_route
from swarm.routing.weightstore import WeightStore

# Peers asked in one round; more make no better route for one client.
PROBES: Final = 128
# Peers to know besides those that suffice: one of them replaces a hop that fails.
SPARES: Final = 8
# Lines told about nodes that differ in their weights: whoever keeps changing what it says is not worth more.
DISPUTES_TOLD: Final = 8
# How much of what hops allow is used: their clocks and ours run apart a little.
FORKS_SHARE: Final = 0.9


class View:
    """Owns the record book, the round-trip times and the bans of one client. Probes run in `nursery`.

    A node counts for nothing until it has answered this client under its own id: until then its record is a
    stranger's word.
    """

    def __init__(
        self,
        transport: Transport,
        nursery: trio.Nursery,
        rng: random.Random,
        *,
        notify: OnEvent | None = None,
        store: WeightStore | None = None,
        bans: Bans | None = None,
        precisions: Precisions = ANYTHING,
    ) -> None:
        self.transport = transport
        self.book = RecordBook()
        self.bans = bans if bans is not None else Bans()
        self.precisions = precisions  # that this client takes
        self.nursery = nursery
        self.forks = Allowance(FORKS_SHARE * limits.FORKS_PER_S, FORKS_SHARE * limits.FORKS_BURST)  # by peer
        self.trusts: dict[bytes, Trust] = {}  # by model digest
        self._notify = notify
        self._store = store
        self._rng = rng
        self._probes = Probes(transport, nursery, self.book, self.bans)
        self._doors: dict[str, PeerAddrs] = {}  # first contacts, asked again whenever the map is
        # Whom our user named, in that order, whoever answered first.
        self._named: dict[str, int] = {}
        self._disputes: set[frozenset[tuple[int, bytes]]] = set()  # told

    @property
    def rtt_ms(self) -> dict[str, float]:
        """Round-trip times of those that answered when they were asked last."""
        return self._probes.rtt_ms

    def now(self) -> float:
        """What time it is in the swarm, in seconds since the Unix epoch."""
        return self._probes.now()

    def complaint(self) -> str:
        """One line on whose clock is wrong; empty if nobody's is."""
        return self._probes.clock.complaint()

    async def enter(self, addrs: Sequence[str]) -> None:
        """Make contact through the addresses given; one that answers is enough.

        Raises: ConfigError, if none answers and one is malformed; Unreachable, if none answers.
        """
        failures: list[SwarmError] = []
        self._named = {peer: rank for rank, addr in enumerate(addrs) if (peer := _peer_of(addr)) is not None}

        async def knock(addr: str, scope: trio.CancelScope) -> None:
            try:
                door = PeerAddrs(await self.transport.connect(addr), (addr,))
                self.book.vouch(door.peer)
                await self._probes.probe(door)
            except SwarmError as error:
                failures.append(error)
                return
            self._doors[door.peer] = door
            scope.cancel()

        async with trio.open_nursery() as nursery:
            for addr in addrs:
                nursery.start_soon(knock, addr, nursery.cancel_scope)
        if self._doors:
            return
        for error in failures:
            if isinstance(error, ConfigError):
                raise error
        raise Unreachable("no node answers: " + "; ".join(str(error) for error in failures))

    async def refresh(self, enough: Callable[[], bool] = lambda: False, *, lately_s: float = 0.0) -> None:
        """Ask who is known for their maps, in parallel, and meet strangers; waits at most PROBE_ROUND_S for them.

        Who has answered within `lately_s`, and failed in nothing since, is not asked again.
        """
        self.book.expire(self.now())
        for peer in [peer for peer in self.rtt_ms if self.book.get(peer) is None]:
            del self.rtt_ms[peer]
        known = {a.peer: PeerAddrs(a.peer, a.addrs) for a in self._met()}
        chosen = [peer for peer in known.values() if peer.peer not in self._doors]
        chosen = self._rng.sample(chosen, min(len(chosen), PROBES - len(self._doors)))
        strangers = self.book.claim(self.now(), PROBES - len(chosen))
        await self._probes.round([*self._doors.values(), *chosen, *strangers], enough, lately_s)

    async def measure(self, digest: bytes, wanted: Span) -> None:
        """Meet nodes of a model until those that answered cover `wanted`, or a round is over; and some to spare.

        Nodes that are a little further away get as long again to answer. As long as somebody who has yet to answer
        announces other weights than those who have, the round goes on: the quickest are not right for that.
        """

        def covered() -> bool:
            return not missing_stages(wanted, [a.span for a in self.nodes(digest) if a.state == "serving"])

        def enough() -> bool:
            if not self._trust(digest).found or not covered():
                return False
            verdict = self.verdict(digest)
            return not any(verdict.challenged_by(a.span, a.weights) for a in self._strangers(digest))

        suffices = self._trust(digest).found and covered()
        await self._meet(lambda said: said.digest == digest, enough, SPARES if suffices else PROBES)

    async def look_for(self, name: str | None) -> None:
        """Meet nodes until one that answered serves the model that is called so: those that say so, then others.

        For a round of each at most; then it is known at least which models there are.
        """

        def fits(said: Announcement) -> bool:
            return name is None or is_called(name, said)

        def enough() -> bool:
            return any(fits(said) for said in self.answered())

        await self._meet(fits, enough, PROBES)
        if not enough():
            await self._meet(lambda said: True, enough, PROBES)

    async def search_dht(self, digest: bytes) -> None:
        """Look for peers in the DHT and ask them for their maps: the slow way, when the map has a hole."""
        for key in (model_key(digest), SWARM_KEY):
            await self._probes.round(await self.transport.dht.providers(key))

    def answered(self) -> list[Announcement]:
        """What the nodes say that answered this client when it asked them last; its doors first.

        Their addresses begin with those where they were met.
        """
        said = [self._as_met(a) for a in self._met() if a.peer in self.rtt_ms]
        return sorted(said, key=lambda a: self._named.get(a.peer, len(self._named)))

    def silent(self, most: int) -> list[Announcement]:
        """Some nodes of the same models that others speak of, but that have not answered."""
        digests = {a.digest for a in self.answered()}
        said = (a for a in self.book.alive(self.now()) if a.peer not in self.rtt_ms and a.digest in digests)
        return list(islice(said, most))

    def nodes(self, digest: bytes) -> list[Announcement]:
        """Nodes of the model that answered, are not banned, and whose numerics and weights are taken here."""
        return [a for a in self._sound(digest) if self.precisions.take(a.numerics)]

    def verdict(self, digest: bytes) -> Verdict:
        """Which weights of the model count now, by the word of those who have answered."""
        witnesses = [
            Witness(a.peer, self.book.origin(a.peer) or "", a.span, a.weights)
            for a in self._met()
            if self._is_of(digest, a)
        ]
        return self._trust(digest).judge(witnesses, self._named)

    def used(self, digest: bytes, hops: Iterable[Hop]) -> None:
        """A route along these hops is open: the weights that count at their stages do so from now on."""
        trust = self._trust(digest)
        if trust.use((stage for hop in hops for stage in hop.span), self.verdict(digest)) and self._store:
            anew, trust.anew = trust.anew, False
            self.nursery.start_soon(trio.to_thread.run_sync, self._store.save, digest, dict(trust.used), anew)

    def plan_apart(self, digest: bytes, need: Need, most: int) -> list[Route]:
        """The best route, the best without its peers, and so on, as far as there are any; at most so many.

        Raises: NoRoute, if there is none at all.
        """
        found = [self.plan(digest, need)]
        while len(found) < most:
            used = {peer for route in found for peer in route.peers}
            nodes = [a for a in self.nodes(digest) if a.peer not in used]
            try:
                found.append(plan_route(need, nodes, Network(self.rtt_ms), self._rng))
            except NoRoute:
                break
        return found

    def plan(self, digest: bytes, need: Need, tried: Collection[str] | None = None) -> Route:
        """The best route now for what is needed of a model.

        Where only banned peers serve some stages, those stages are theirs, the least guilty first, as soon as their
        pause is over. With `tried` this is the last chance: not for those in it, nor for who fails again and again.
        Raises: NoRoute.
        """
        network, nodes, verdict = Network(self.rtt_ms), self.nodes(digest), self.verdict(digest)
        self._tell(verdict, need.blocks)
        spares = [a for wait_s, a in self._spares(digest, need.tokens, tried) if wait_s == 0]
        while True:
            try:
                return plan_route(need, nodes, network, self._rng)
            except NoRoute as error:
                parts = next(filter(None, (_parts(a, error) for a in spares)), None)
                if parts is None:
                    others = (a for a in self._sound(digest) if not self.precisions.take(a.numerics))
                    raise verdict.explain(self.precisions.explain(error, others), need.blocks) from None
                nodes = [*nodes, *parts]

    def pause_s(
        self, digest: bytes, error: NoRoute, tokens: int, tried: Collection[str] | None = None
    ) -> float | None:
        """How long until a banned peer may be asked for stages that are missing; None if there is none."""
        spares = self._spares(digest, tokens, tried)
        return min((wait_s for wait_s, a in spares if _parts(a, error)), default=None)

    def choose_model(self, name: str | None) -> Announcement:
        """What a node says of the model asked for. Raises what `choice.choose_model` does."""
        return choose_model(self.answered(), name, self._named, self.complaint())

    # --- meeting nodes

    async def _meet(
        self, wanted: Callable[[Announcement], bool], enough: Callable[[], bool], most: int
    ) -> None:
        """Ask strangers that are `wanted` until there is `enough`; those that answer pay for further ones."""
        began = trio.current_time()
        while trio.current_time() < began + PROBE_ROUND_S:
            strangers = self.book.claim(self.now(), most, wanted)
            await self._probes.round(strangers, enough)
            if not strangers or enough():
                return

    def _trust(self, digest: bytes) -> Trust:
        return self.trusts.setdefault(digest, Trust())

    def _is_of(self, digest: bytes, said: Announcement) -> bool:
        """Whether a node is of the model: with as many stages as its manifest says, once that is known."""
        return said.digest == digest and self._trust(digest).stages in (0, said.stages)

    def _sound(self, digest: bytes) -> list[Announcement]:
        """Nodes of the model that answered, are not banned and say nothing else of its weights than what counts."""
        now, verdict = trio.current_time(), self.verdict(digest)
        said = (a for a in self.answered() if self._is_of(digest, a) and not self.bans.banned(a.peer, now))
        return [a for a in said if verdict.accepts(a.span, a.weights)]

    def _strangers(self, digest: bytes) -> list[Announcement]:
        """Nodes of the model that others speak of, but that have yet to answer; not those that failed to."""
        now, met = trio.current_time(), {a.peer for a in self._met()}
        said = (a for a in self.book.alive(self.now()) if a.peer not in met and self._is_of(digest, a))
        return [a for a in said if not self.bans.banned(a.peer, now)]

    def _spares(
        self, digest: bytes, tokens: int, tried: Collection[str] | None
    ) -> list[tuple[float, Announcement]]:
        """Banned nodes that answer, the least guilty first, and how long they are to be left alone yet."""
        now, verdict = trio.current_time(), self.verdict(digest)
        spares = []
        for a in self.answered():
            wait_s = self.bans.wait_s(a.peer, now) if self.bans.banned(a.peer, now) else None
            if (
                wait_s is None
                or not self._is_of(digest, a)
                or not self.precisions.take(a.numerics)
                or (tried is not None and (a.peer in tried or self.bans.is_hopeless(a.peer, now)))
            ):
                continue
            has_room = a.kv_tokens >= min(tokens, BEGIN_TOKENS)
            if a.state == "serving" and has_room and verdict.accepts(a.span, a.weights):
                spares.append((wait_s, a))
        return sorted(spares, key=lambda spare: self.bans.guilt(spare[1].peer, now))

    def _tell(self, verdict: Verdict, blocks: int) -> None:
        """Say once of each dispute about weights that there is one."""
        disputed = verdict.disputed
        if disputed in self._disputes or len(self._disputes) >= DISPUTES_TOLD:
            return
        line = verdict.describe(blocks)
        if line is not None and self._notify is not None:
            self._disputes.add(disputed)
            self._notify(Noticed(line))

    def _met(self) -> list[Announcement]:
        return self.book.met(self.now())

    def _as_met(self, said: Announcement) -> Announcement:
        first = self.book.proven(said.peer)
        if said.addrs[: len(first)] == first:
            return said
        return replace(said, addrs=(*first, *(addr for addr in said.addrs if addr not in first)))


def _parts(spare: Announcement, error: NoRoute) -> list[Announcement]:
    """What a node serves of the stages for which there is no route, as if it served no more."""
    common = ((max(start, spare.span.start), min(stop, spare.span.stop)) for start, stop in error.missing)
    return [replace(spare, span=Span(*part)) for part in common if part[0] < part[1]]


def _peer_of(addr: str) -> str | None:
    """The peer whose address our user gave; None if that is malformed, which `connect` says."""
    try:
        return parse_address(addr).peer
    except ConfigError:
        return None
