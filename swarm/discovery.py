"""The client's view of the swarm: whose announcements it holds, who answers, how far away they are."""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace
from typing import Final

import trio

from protocol.book import RecordBook
from protocol.errors import (
    ConfigError,
    NoRoute,
    PeerUnavailable,
    RemoteProtocolError,
    SwarmError,
    Unreachable,
)
from protocol.hints import SWARM_KEY, model_key
from protocol.model import Span
from protocol.records import Announcement, parse_record
from protocol.transport.addresses import parse_address
from protocol.transport.base import PeerAddrs, Transport
from protocol.transport.exchange import exchange_maps
from protocol.transport.origin import origin_of
from swarm.bans import Bans
from swarm.events import Noticed, OnEvent
from swarm.route import Hop, Network, Route, missing_stages, plan_route
from swarm.weights import Trust, Verdict, Witness
from swarm.weightstore import WeightStore

# Peers asked at once; bounds sockets and wake-ups in a swarm of thousands.
PROBES_AT_ONCE: Final = 32
# Peers asked in one round; more make no better route for one client.
PROBES: Final = 128
# How long a round of probes may hold up its caller; who answers later is noted in the background.
PROBE_ROUND_S: Final = 1.0
# Lines told about nodes that differ in their weights: whoever keeps changing what it says is not worth more.
DISPUTES_TOLD: Final = 8


class View:
    """Owns the record book, the round-trip times and the bans of one client. Probes run in `nursery`."""

    def __init__(
        self,
        transport: Transport,
        nursery: trio.Nursery,
        rng: random.Random,
        *,
        notify: OnEvent | None = None,
        store: WeightStore | None = None,
    ) -> None:
        self.transport = transport
        self.book = RecordBook()
        self.bans = Bans()
        self.rtt_ms: dict[str, float] = {}
        self.nursery = nursery
        self.trusts: dict[bytes, Trust] = {}  # by model digest
        self._notify = notify
        self._store = store
        self._rng = rng
        self._limiter = trio.CapacityLimiter(PROBES_AT_ONCE)
        self._doors: dict[str, PeerAddrs] = {}  # first contacts, asked again whenever the map is
        self._origins: dict[str, str] = {}  # of those who have answered: the block where they were met
        self._disputes: set[frozenset[tuple[int, bytes]]] = set()  # told

    async def enter(self, addrs: Sequence[str]) -> None:
        """Make contact through the addresses given; one that answers is enough.

        Raises: ConfigError, if none answers and one is malformed; Unreachable, if none answers.
        """
        failures: list[SwarmError] = []

        async def knock(addr: str, scope: trio.CancelScope) -> None:
            try:
                door = PeerAddrs(await self.transport.connect(addr), (addr,))
                await self._probe(door)
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

    async def refresh(self) -> None:
        """Ask who is known for their maps, in parallel; waits at most PROBE_ROUND_S for them."""
        self.book.expire(time.time())
        self._origins = {peer: origin for peer, origin in self._origins.items() if self.book.get(peer)}
        known = dict(self._doors)
        known.update({a.peer: PeerAddrs(a.peer, a.addrs) for a in self.book.alive(time.time())})
        await self._round(list(known.values()))

    async def measure(self, digest: bytes, wanted: Span) -> None:
        """Probe the nodes of a model until those that answered cover `wanted`, or a round is over.

        Nodes that are a little further away get as long again to answer. As long as somebody who has yet to answer
        announces other weights than those who have, the round goes on: the quickest are not right for that.
        """

        def enough() -> bool:
            if not self._trust(digest).found:
                return False
            verdict = self.verdict(digest)
            heard = [a for a in self._asked(digest) if verdict.accepts(a.span, a.weights)]
            if missing_stages(wanted, [a.span for a in heard if a.peer in self.rtt_ms]):
                return False
            strangers = (a for a in self._asked(digest) if a.peer not in self._origins)
            return not any(verdict.challenged_by(a.span, a.weights) for a in strangers)

        unknown = [PeerAddrs(a.peer, a.addrs) for a in self._asked(digest) if a.peer not in self.rtt_ms]
        await self._round(unknown, enough)

    async def search_dht(self, digest: bytes) -> None:
        """Look for peers in the DHT and ask them for their maps: the slow way, when the map has a hole."""
        for key in (model_key(digest), SWARM_KEY):
            await self._round(await self.transport.dht.providers(key))

    def nodes(self, digest: bytes) -> list[Announcement]:
        """Nodes of the model that are not banned and say nothing else about its weights than what counts."""
        verdict = self.verdict(digest)
        return [a for a in self._asked(digest) if verdict.accepts(a.span, a.weights)]

    def verdict(self, digest: bytes) -> Verdict:
        """Which weights of the model count now, by the word of those who have answered."""
        witnesses = [
            Witness(a.peer, self._origins[a.peer], a.span, a.weights)
            for a in self._alive(digest)
            if a.peer in self._origins
        ]
        return self._trust(digest).judge(witnesses, self._doors.keys())

    def used(self, digest: bytes, hops: Iterable[Hop]) -> None:
        """A route along these hops is open: the weights that count at their stages do so from now on."""
        trust = self._trust(digest)
        if trust.use((stage for hop in hops for stage in hop.span), self.verdict(digest)) and self._store:
            anew, trust.anew = trust.anew, False
            self.nursery.start_soon(trio.to_thread.run_sync, self._store.save, digest, dict(trust.used), anew)

    def plan(
        self, digest: bytes, blocks: int, wanted: Span, tokens: int, tried: Collection[str] | None = None
    ) -> Route:
        """The best route now for a session of `tokens` with a model of `blocks`.

        Where only banned peers serve some stages, those stages are theirs, the least guilty first, as soon as their
        pause is over. With `tried` this is the last chance: not for those in it, nor for who fails again and again.
        Raises: NoRoute.
        """
        network, nodes, verdict = Network(self.rtt_ms), self.nodes(digest), self.verdict(digest)
        self._tell(verdict, blocks)
        with contextlib.suppress(NoRoute):  # those that answered suffice: nobody has to wait for a dead one
            answered = [node for node in nodes if node.peer in self.rtt_ms]
            return plan_route(wanted, answered, network, blocks=blocks, tokens=tokens, rng=self._rng)
        spares = [a for wait_s, a in self._spares(digest, tokens, tried) if wait_s == 0]
        while True:
            try:
                return plan_route(wanted, nodes, network, blocks=blocks, tokens=tokens, rng=self._rng)
            except NoRoute as error:
                parts = next(filter(None, (_parts(a, error) for a in spares)), None)
                if parts is None:
                    raise verdict.explain(error, blocks) from None
                nodes = [*nodes, *parts]

    def pause_s(
        self, digest: bytes, error: NoRoute, tokens: int, tried: Collection[str] | None = None
    ) -> float | None:
        """How long until a banned peer may be asked for stages that are missing; None if there is none."""
        spares = self._spares(digest, tokens, tried)
        return min((wait_s for wait_s, a in spares if _parts(a, error)), default=None)

    def choose_model(self, name: str | None) -> Announcement:
        """An announcement of the model asked for: by name, by the first digits of its digest, or the only one.

        Raises: ConfigError, naming the models there are; NoRoute, if nobody serves any.
        """
        models = {a.digest: a for a in self.book.alive(time.time())}
        if not models:
            raise NoRoute("nobody in this swarm serves a model yet")
        wanted = [a for a in models.values() if name is None or _is_called(name, a)]
        if len(wanted) == 1:
            return wanted[0]
        names = ", ".join(sorted(f"{a.model} ({a.digest.hex()[:8]})" for a in models.values()))
        if not wanted:
            raise ConfigError(f"nobody serves the model {name!r}; this swarm serves {names}")
        raise ConfigError(f"this swarm serves several models, {names}: choose one by name or digest")

    def _trust(self, digest: bytes) -> Trust:
        return self.trusts.setdefault(digest, Trust())

    def _alive(self, digest: bytes) -> list[Announcement]:
        """Nodes of the model; what has another number of stages than its manifest says is not of the model."""
        stages = self._trust(digest).stages
        return [a for a in self.book.alive(time.time()) if a.digest == digest and stages in (0, a.stages)]

    def _asked(self, digest: bytes) -> list[Announcement]:
        """Nodes of the model that are not banned, whatever their weights."""
        now = trio.current_time()
        return [a for a in self._alive(digest) if not self.bans.banned(a.peer, now)]

    def _spares(
        self, digest: bytes, tokens: int, tried: Collection[str] | None
    ) -> list[tuple[float, Announcement]]:
        """Banned nodes that answer, the least guilty first, and how long they are to be left alone yet."""
        now, verdict = trio.current_time(), self.verdict(digest)
        spares = []
        for a in self._alive(digest):
            wait_s = self.bans.wait_s(a.peer, now) if self.bans.banned(a.peer, now) else None
            if wait_s is None or (
                tried is not None and (a.peer in tried or self.bans.is_hopeless(a.peer, now))
            ):
                continue
            if a.state == "serving" and a.kv_tokens >= tokens and verdict.accepts(a.span, a.weights):
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

    async def _round(self, peers: Sequence[PeerAddrs], enough: Callable[[], bool] = lambda: False) -> None:
        chosen = [p for p in peers if p.peer != self.transport.peer]
        if len(chosen) > PROBES:
            chosen = self._rng.sample(chosen, PROBES)
        if not chosen or enough():
            return
        left, began = len(chosen), trio.current_time()
        suffices, everybody = trio.Event(), trio.Event()

        async def ask(peer: PeerAddrs) -> None:
            nonlocal left
            try:
                async with self._limiter:
                    await self._probe(peer)
            except (PeerUnavailable, RemoteProtocolError) as error:
                self.rtt_ms.pop(peer.peer, None)
                now, honest = trio.current_time(), isinstance(error, PeerUnavailable)
                if honest or not self.bans.banned(
                    peer.peer, now
                ):  # to break the rules twice in a ban is once
                    self.bans.ban(peer.peer, now, honest=honest)
            left -= 1
            if left == 0:
                everybody.set()
            if left == 0 or enough():
                suffices.set()

        for peer in chosen:
            self.nursery.start_soon(ask, peer)
        with trio.move_on_after(PROBE_ROUND_S):
            await suffices.wait()
            with trio.move_on_after(trio.current_time() - began):
                await everybody.wait()

    async def _probe(self, peer: PeerAddrs) -> None:
        """Exchange maps with one peer. Raises: PeerUnavailable, RemoteProtocolError."""
        data, rtt_s = await exchange_maps(self.transport, peer.peer, peer.addrs)
        self.rtt_ms[peer.peer] = min(1000 * rtt_s, self.rtt_ms.get(peer.peer, float("inf")))
        now, clock = trio.current_time(), time.time()
        fresh, _ = self.book.merge(data, clock)
        for record in fresh:
            self.bans.renewed(record.peer, now - (clock - record.announcement.issued), now)
        self._met(peer.peer)
        if _speaks_for_itself(peer.peer, data):
            self.bans.answered(peer.peer, now)

    def _met(self, peer: str) -> None:
        """Note where `peer` is, which has just answered."""
        place = self.transport.place_of(peer)
        self._origins[peer] = origin_of(parse_address(place).host) if place is not None else ""


def _parts(spare: Announcement, error: NoRoute) -> list[Announcement]:
    """What a node serves of the stages for which there is no route, as if it served no more."""
    common = ((max(start, spare.span.start), min(stop, spare.span.stop)) for start, stop in error.missing)
    return [replace(spare, span=Span(*part)) for part in common if part[0] < part[1]]


def _speaks_for_itself(peer: str, records: Sequence[bytes]) -> bool:
    """Whether a map begins with its sender's own word; a node that has just started has yet to say what it serves."""
    try:
        return bool(records) and parse_record(records[0], time.time()).peer == peer
    except RemoteProtocolError:
        return False


def _is_called(name: str, said: Announcement) -> bool:
    hexadecimal = len(name) >= 4 and said.digest.hex().startswith(name.lower())
    return hexadecimal or name in (said.model, said.model.rsplit("/", 1)[-1])
