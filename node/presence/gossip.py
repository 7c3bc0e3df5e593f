"""Keeps the node's word fresh in the swarm, and the swarm's in the node: exchanges, the DHT, the goodbye.

All in the background; nothing here is on the way of a token.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass

import trio

from node.presence.announce import Announcer
from protocol import limits
from protocol.errors import PeerUnavailable, RemoteProtocolError, SwarmError, TimedOut, Unreachable
from protocol.hints import SWARM_KEY, model_key, record_key
from protocol.records import Record
from protocol.talk.exchange import meet
from protocol.transport.base import PeerAddrs, Transport

logger = logging.getLogger(__name__)

# Exchanges with two random peers in this time. Simulated: 100 nodes then never miss a living one, whose record lives
# 60 s; with one peer a round they miss one in a hundred.
EXCHANGE_EVERY_S = 10.0
EXCHANGE_PEERS = 2
# Strangers to meet in one round: a hundred newcomers are met in two minutes, and known to others long before.
STRANGERS = 8
# Peers asked at once as a node joins, and told as it leaves.
JOIN_PEERS = 16
GOODBYE_PEERS = 64
# Peers that the DHT names and nobody else: what it says is anybody's word, and nobody pays for it.
HINTED_PEERS = 4
# Lookups in the DHT: a swarm that was split finds itself again within a minute.
LOOKUP_EVERY_S = 45.0
PROVIDE_EVERY_S = 600.0
# A stored announcement is new when it is put, and put again before it expires.
PUT_EVERY_S = limits.RECORD_LIFE_S * 2 / 3
# A peer that does not answer is left alone for this long, twice as long each time.
BACKOFF_S = 10.0
BACKOFF_MOST_S = 600.0
STANDINGS = 4096
JOIN_RETRY_S = 1.0


@dataclass(frozen=True, slots=True)
class _Standing:
    failures: int
    retry_at: float


class Gossip:
    """The background work of one node; `refresh` makes and signs its newest record."""

    def __init__(
        self, announcer: Announcer, transport: Transport, refresh: Callable[[], Record], *, rng: random.Random
    ) -> None:
        self._announcer = announcer
        self._transport = transport
        self._refresh = refresh
        self._rng = rng
        self._standings: dict[str, _Standing] = {}
        self._doors: dict[str, PeerAddrs] = {}  # first contacts: asked even when the book has forgotten them
        self._provided_at = float("-inf")
        self._provided_to = 0
        self.exchanged = 0  # maps, with peers
        self.failed = 0  # exchanges that did not come about

    @property
    def doors(self) -> Collection[str]:
        """Peers that the owner named and that answered."""
        return self._doors.keys()

    async def join(self, addrs: Sequence[str], within_s: float) -> None:
        """Exchange maps with the peers at `addrs`, then with some that they know; one that answers is enough.

        Raises: ConfigError, if an address is malformed; Unreachable, if none answered within `within_s`.
        """
        failures: dict[str, str] = {}
        one, everyone = trio.Event(), trio.Event()

        async def knock(addr: str) -> None:
            while True:
                try:
                    door = PeerAddrs(await self._transport.connect(addr), (addr,))
                    self._announcer.book.vouch(door.peer)
                    await self._exchange(door)
                    break
                except (PeerUnavailable, RemoteProtocolError) as error:
                    failures[addr] = str(error)
                    await trio.sleep(JOIN_RETRY_S)
            self._doors[door.peer] = door
            one.set()
            if len(self._doors) == len(set(addrs)):
                everyone.set()

        with trio.move_on_after(within_s):
            async with trio.open_nursery() as nursery:
                for addr in set(addrs):
                    nursery.start_soon(knock, addr)
                await one.wait()
                with trio.move_on_after(JOIN_RETRY_S):
                    await everyone.wait()
                nursery.cancel_scope.cancel()
        if not one.is_set():
            raise Unreachable("; ".join(failures.values()) or "no answer")
        await self.spread()

    async def run(self) -> None:
        """Refresh, exchange and look up, for ever."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._repeat, self._say_again, limits.RECORD_LIFE_S / 3)
            nursery.start_soon(self._repeat, self._exchange_round, EXCHANGE_EVERY_S)
            nursery.start_soon(self._repeat, self._look_up, LOOKUP_EVERY_S)
            nursery.start_soon(self._repeat, self._put, PUT_EVERY_S)
            nursery.start_soon(self._repeat, self._provide, EXCHANGE_EVERY_S)

    async def spread(self) -> None:
        """Tell some peers at once, and then those that they speak of: for what should not wait for the next round."""
        await self._exchange_with(self._candidates()[:JOIN_PEERS])
        await self._exchange_with(self._strangers(JOIN_PEERS))

    async def goodbye(self, within_s: float) -> None:
        """Tell known peers of our last record, all at once, and wait no longer than `within_s`."""
        with trio.move_on_after(within_s):
            await self._exchange_with(self._candidates()[:GOODBYE_PEERS])

    # --- rounds

    async def _repeat(self, action: Callable[[], Awaitable[None]], every_s: float) -> None:
        while True:
            try:
                await action()
            except SwarmError as error:
                logger.info("%s: %s", getattr(action, "__name__", "gossip"), error)
            except Exception:
                # The network's libraries are many; what they fail with must not end the node.
                logger.exception("background work failed and will be tried again")
            await trio.sleep(every_s * self._rng.uniform(0.8, 1.2))

    async def _say_again(self) -> None:
        self._announcer.book.expire(self._announcer.clock())
        self._refresh()

    async def _exchange_round(self) -> None:
        await self._exchange_with([*self._candidates()[:EXCHANGE_PEERS], *self._strangers(STRANGERS)])

    async def _look_up(self) -> None:
        own = self._announcer.own
        keys = [SWARM_KEY] if own is None else [model_key(own.announcement.digest), SWARM_KEY]
        strangers: dict[str, PeerAddrs] = {}
        for key in keys:
            for found in await self._transport.dht.providers(key):
                if self._is_new(found.peer):
                    strangers[found.peer] = found
        await self._exchange_with(list(strangers.values())[:HINTED_PEERS])

    async def _put(self) -> None:
        if self._announcer.own is not None:
            own = self._refresh()
            await self._transport.dht.put(record_key(own.peer), own.data)

    async def _provide(self) -> None:
        """Every ten minutes, and when there are more neighbours to tell than when we last did."""
        own, now = self._announcer.own, trio.current_time()
        neighbours = len(self._announcer.others())
        due = now - self._provided_at >= PROVIDE_EVERY_S or neighbours > 2 * self._provided_to
        if own is None or not due:
            return
        self._provided_at, self._provided_to = now, neighbours
        await self._transport.dht.provide(model_key(own.announcement.digest))
        await self._transport.dht.provide(SWARM_KEY)

    # --- one exchange

    async def _exchange_with(self, peers: list[PeerAddrs]) -> None:
        async def one(peer: PeerAddrs) -> None:
            try:
                await self._exchange(peer)
            except (PeerUnavailable, RemoteProtocolError) as error:
                self._failed(peer.peer)
                if isinstance(error, Unreachable | TimedOut):
                    self._announcer.book.doubt(peer.peer)
                logger.debug("no map from %s: %s", peer.peer, error)

        async with trio.open_nursery() as nursery:
            for peer in peers:
                nursery.start_soon(one, peer)

    async def _exchange(self, peer: PeerAddrs) -> None:
        await self._announcer.met(await meet(self._transport, peer, self._announcer.news()))
        self.exchanged += 1
        self._standings.pop(peer.peer, None)

    def _candidates(self) -> list[PeerAddrs]:
        """Peers that were met and are worth asking now, in random order."""
        now = trio.current_time()
        known = dict(self._doors)
        known.update({said.peer: PeerAddrs(said.peer, said.addrs) for said in self._announcer.others()})
        known.pop(self._transport.peer, None)
        ready = [peer for peer in known.values() if self._may_ask(peer.peer, now)]
        self._rng.shuffle(ready)
        return ready

    def _strangers(self, most: int) -> list[PeerAddrs]:
        """Peers that others speak of, to be met now."""
        now = trio.current_time()
        return self._announcer.book.claim(
            self._announcer.clock(), most, lambda said: self._may_ask(said.peer, now)
        )

    def _is_new(self, peer: str) -> bool:
        known = self._announcer.book.get(peer)
        dead = known is None or known.announcement.expires <= self._announcer.clock()
        return dead and peer != self._transport.peer and self._may_ask(peer, trio.current_time())

    def _may_ask(self, peer: str, now: float) -> bool:
        standing = self._standings.get(peer)
        return standing is None or now >= standing.retry_at

    def _failed(self, peer: str) -> None:
        self.failed += 1
        known = self._standings.pop(peer, None)
        failures = 1 if known is None else known.failures + 1
        pause_s = min(BACKOFF_MOST_S, BACKOFF_S * 2.0 ** (failures - 1))
        self._standings[peer] = _Standing(failures, trio.current_time() + pause_s)
        while len(self._standings) > STANDINGS:
            del self._standings[next(iter(self._standings))]
