"""What py-libp2p's host remembers of peers, with bounds: they say it of themselves, and they are many."""

from __future__ import annotations

from collections.abc import Sequence

from libp2p.custom_types import MetadataValue
from libp2p.peer.envelope import Envelope
from libp2p.peer.id import ID
from libp2p.peer.peerstore import PeerStore
from multiaddr import Multiaddr

from protocol.transport.limits import (
    HOST_MAX_PEERS,
    HOST_MAX_PROTOCOLS,
    HOST_MAX_RECORD,
    HOST_MAX_TEXT,
    MAX_DIAL_ADDRS,
)


class BoundedPeers(PeerStore):
    """Peers, of which the one heard of longest ago makes room; `me` stays."""

    def __init__(self, me: ID) -> None:
        super().__init__(max_records=HOST_MAX_PEERS, max_peers=HOST_MAX_PEERS)
        self._me = me

    def add_addrs(self, peer_id: ID, addrs: Sequence[Multiaddr], ttl: int = 0) -> None:
        """Note where `peer_id` may be; the latest few addresses are kept."""
        self._heard_of(peer_id)
        super().add_addrs(peer_id, addrs[-MAX_DIAL_ADDRS:], ttl)
        data = self.peer_data_map.get(peer_id)
        if data is not None:
            del data.addrs[:-MAX_DIAL_ADDRS]

    def add_protocols(self, peer_id: ID, protocols: Sequence[str]) -> None:
        """Note what `peer_id` speaks."""
        self.set_protocols(peer_id, [*self._protocols(peer_id), *protocols])

    def set_protocols(self, peer_id: ID, protocols: Sequence[str]) -> None:
        """Note what `peer_id` speaks, as far as that is a few short names."""
        self._heard_of(peer_id)
        short = dict.fromkeys(name for name in protocols if len(name) <= HOST_MAX_TEXT)
        super().set_protocols(peer_id, list(short)[:HOST_MAX_PROTOCOLS])
        self._enforce_peer_limit()

    def put(self, peer_id: ID, key: str, val: MetadataValue) -> None:
        """Note a property of `peer_id`, unless it is long."""
        if not isinstance(val, str | bytes) or len(val) <= HOST_MAX_TEXT:
            self._heard_of(peer_id)
            super().put(peer_id, key, val)
            self._enforce_peer_limit()

    def consume_peer_record(self, envelope: Envelope, ttl: int) -> bool:
        """Note what `envelope` says; False if it is worth nothing, or too large."""
        if len(envelope.raw_payload) > HOST_MAX_RECORD or not super().consume_peer_record(envelope, ttl):
            return False
        while len(self.peer_record_map) > self.max_records:
            del self.peer_record_map[next(iter(self.peer_record_map))]
        return True

    def _protocols(self, peer_id: ID) -> list[str]:
        return self.get_protocols(peer_id) if self.has_peer(peer_id) else []

    def _heard_of(self, peer_id: ID) -> None:
        data = self.peer_data_map.pop(peer_id, None)
        if data is not None:
            self.peer_data_map[peer_id] = data  # now the latest

    def _enforce_peer_limit(self) -> None:
        while len(self.peer_data_map) > self.max_peers:
            oldest = next(peer for peer in self.peer_data_map if peer != self._me)
            del self.peer_data_map[oldest]
            self.peer_record_map.pop(oldest, None)
