"""The half of Kademlia that answers: py-libp2p's server with bounds, and a routing table of servers only."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextvars import ContextVar

from libp2p.abc import IHost, INetStream
from libp2p.kad_dht.common import BUCKET_SIZE, PROTOCOL_ID
from libp2p.kad_dht.kad_dht import DHTMode, KadDHT
from libp2p.kad_dht.pb.kademlia_pb2 import Record
from libp2p.kad_dht.peer_routing import PeerRouting
from libp2p.kad_dht.provider_store import ProviderStore
from libp2p.kad_dht.value_store import ValueStore
from libp2p.peer.id import ID
from libp2p.peer.peerinfo import PeerInfo
from libp2p.peer.peerstore import PeerStoreError
from libp2p.records.validator import Validator

from protocol.errors import TooLarge
from protocol.transport.crowd import Crowd
from protocol.transport.libp2p.muxed import MuxedConnection
from protocol.transport.limits import (
    DHT_MAX_INCOMING,
    DHT_MAX_PROVIDERS,
    DHT_MAX_PROVIDES_PER_10_S,
    DHT_MAX_VALUE,
    DHT_MAX_VALUES,
    MAX_DIAL_ADDRS,
)
from protocol.transport.origin import HERE
from protocol.transport.slots import Slots
from protocol.transport.validator import DhtValidator

KAD = str(PROTOCOL_ID)
OriginOf = Callable[[str], str]  # of a peer, by its connection now; empty if there is none


class BoundedRule(Validator):
    """The caller's rule in py-libp2p's shape, for values that are not too large."""

    def __init__(self, rule: DhtValidator) -> None:
        self._rule = rule

    def validate(self, key: str, value: bytes) -> None:
        """Raises: what the caller's rule raises; TooLarge."""
        if len(value) > DHT_MAX_VALUE:
            raise TooLarge(f"a DHT value of {len(value)} bytes")
        self._rule.validate(key, value)

    def select(self, key: str, values: list[bytes]) -> int:
        """The index of the newest; of equals the last, so that putting a value again renews its life."""
        best = 0
        for index in range(1, len(values)):
            if values[index] == values[best] or self._rule.newer(values[index], values[best]):
                best = index
        return best


class BoundedValues(ValueStore):
    """Values in memory; of too many the oldest of the origin that has put the most makes room."""

    def __init__(self, host: IHost, peer: ID, putter: ContextVar[str]) -> None:
        super().__init__(host, peer)
        self._putter = putter
        self._all: Crowd[bytes] = Crowd()

    def put_record(self, key: bytes, record: Record) -> None:
        """Store a value that the peer whose stream is being served has put."""
        super().put_record(key, record)
        origin = self._putter.get()
        self._all.enter(key, origin, origin)
        if len(self._all) > DHT_MAX_VALUES:
            self.store.pop(self._all.give_way(), None)

    def _evict_if_full(self) -> None:
        """Room is made after a value is stored."""


class BoundedProviders(ProviderStore):
    """Providers in memory; of too many, of one key or in all, the one heard of longest ago makes room.

    Of those of the origin that has the most: the nodes of one block of addresses do not push out others.
    """

    def __init__(self, host: IHost, peer_routing: PeerRouting, origin_of: OriginOf) -> None:
        super().__init__(host, peer_routing)
        self._origin_of = origin_of
        self._all: Crowd[tuple[bytes, str]] = Crowd()
        self._of_key: dict[bytes, Crowd[str]] = {}

    def add_provider(self, key: bytes, provider: PeerInfo) -> None:
        """Note that `provider` provides `key`."""
        peer = str(provider.peer_id)
        origin = self._origin_of(peer)
        self._of_key.setdefault(key, Crowd()).enter(peer, origin, peer)
        self._all.enter((key, peer), origin, peer)
        if len(self._of_key[key]) > BUCKET_SIZE:
            self._forget(key, self._of_key[key].give_way())
        if len(self._all) > DHT_MAX_PROVIDERS:
            self._forget(*self._all.give_way())
        super().add_provider(key, PeerInfo(provider.peer_id, provider.addrs[:MAX_DIAL_ADDRS]))

    def _forget(self, key: bytes, peer: str) -> None:
        self._all.leave((key, peer))
        of_key = self._of_key[key]
        of_key.leave(peer)
        if not of_key:
            del self._of_key[key]
        known = self.providers.get(key, {})
        known.pop(peer, None)
        if not known:
            self.providers.pop(key, None)


class KadServer(KadDHT):
    """Answers lookups in server mode; in client mode it is only the routing table."""

    def __init__(self, host: IHost, server: bool, rule: DhtValidator, origin_of: OriginOf) -> None:
        super().__init__(
            host,
            DHTMode.SERVER if server else DHTMode.CLIENT,
            validator=BoundedRule(rule),  # type: ignore[arg-type]  # only validate and select are called
            validator_changed=True,
            max_peers_per_subnet=0,  # volunteers behind one provider, or one laboratory, are no attack
        )
        self.is_server = server
        self._putter = ContextVar("putter", default=HERE)  # the origin whose stream this task serves
        self.value_store = BoundedValues(host, self.local_peer_id, self._putter)
        self.provider_store = BoundedProviders(host, self.peer_routing, origin_of)
        self._slots = Slots(DHT_MAX_INCOMING)
        self._provider_rate_max = DHT_MAX_PROVIDES_PER_10_S

    async def handle_stream(self, stream: INetStream) -> None:
        """Answer one stream, while it does not have to give way. Raises: Busy, then."""
        muxed = stream.muxed_conn
        if not self.is_server or not isinstance(muxed, MuxedConnection):
            await stream.close()
            return
        self._putter.set(muxed.connection.origin)
        with self._slots.taken(muxed.connection):
            await self._do_handle_stream(stream)

    async def add_peer(self, peer_id: ID, *, skip_server_mode_check: bool = False) -> bool:
        """Add a peer that is known to answer lookups; who merely asks may be a client."""
        try:
            if KAD not in self.host.get_peerstore().get_protocols(peer_id):
                return False
        except PeerStoreError:
            return False
        return await self.routing_table.add_peer(peer_id)

    async def identified(self, peer_id: ID) -> None:
        """Identify has told which protocols `peer_id` speaks."""
        await self.add_peer(peer_id)

    def keep(self, key: bytes, value: bytes) -> None:
        """Store our own value here too, so that the first nodes of a swarm find theirs."""
        record = Record(key=key, value=value)
        record.timeReceived = str(time.time())
        self.value_store.put_record(key, record)
