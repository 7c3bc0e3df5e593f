"""The half of Kademlia that answers: py-libp2p's server with bounds, and a routing table of servers only."""

from __future__ import annotations

import time

import trio
from libp2p.abc import IHost
from libp2p.kad_dht.common import BUCKET_SIZE, PROTOCOL_ID
from libp2p.kad_dht.kad_dht import DHTMode, KadDHT
from libp2p.kad_dht.pb.kademlia_pb2 import Record
from libp2p.kad_dht.provider_store import ProviderStore
from libp2p.kad_dht.value_store import ValueStore
from libp2p.peer.id import ID
from libp2p.peer.peerinfo import PeerInfo
from libp2p.peer.peerstore import PeerStoreError
from libp2p.records.validator import Validator

from protocol.errors import TooLarge
from protocol.transport.limits import (
    DHT_MAX_INCOMING,
    DHT_MAX_PROVIDED_KEYS,
    DHT_MAX_PROVIDES_PER_10_S,
    DHT_MAX_VALUE,
    DHT_MAX_VALUES,
)
from protocol.transport.validator import DhtValidator

KAD = str(PROTOCOL_ID)


class RecordRule(Validator):
    """The caller's rule in py-libp2p's shape."""

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
    """Values in memory, the oldest making room."""

    def _evict_if_full(self) -> None:
        while len(self.store) >= DHT_MAX_VALUES:
            del self.store[next(iter(self.store))]


class BoundedProviders(ProviderStore):
    """Providers in memory; of too many the one heard of longest ago makes room, as it is most likely dead."""

    def add_provider(self, key: bytes, provider: PeerInfo) -> None:
        """Note that `provider` provides `key`."""
        known = self.providers.pop(key, {})
        known.pop(str(provider.peer_id), None)
        while len(known) >= BUCKET_SIZE:
            del known[next(iter(known))]
        while len(self.providers) >= DHT_MAX_PROVIDED_KEYS:
            del self.providers[next(iter(self.providers))]
        self.providers[key] = known
        super().add_provider(key, provider)


class KadServer(KadDHT):
    """Answers lookups in server mode; in client mode it is only the routing table."""

    def __init__(self, host: IHost, server: bool, rule: DhtValidator) -> None:
        super().__init__(
            host,
            DHTMode.SERVER if server else DHTMode.CLIENT,
            validator=RecordRule(rule),  # type: ignore[arg-type]  # only validate and select are called
            validator_changed=True,
            max_peers_per_subnet=0,  # volunteers behind one provider, or one laboratory, are no attack
        )
        self.is_server = server
        self.value_store = BoundedValues(host, self.local_peer_id)
        self.provider_store = BoundedProviders(host, self.peer_routing)
        self._inbound_limiter = trio.CapacityLimiter(DHT_MAX_INCOMING)
        self._provider_rate_max = DHT_MAX_PROVIDES_PER_10_S

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
