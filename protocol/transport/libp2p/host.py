"""py-libp2p's host over our connections: identify and Kademlia's server, and nothing that dials behind our back.

The host sees every verified connection of the endpoint, whoever dialled, and opens its streams on them; when
it needs a connection it asks the same dialler as everybody else. Its own dialling (one address per transport,
250 ms of waiting, retries, a 60 s block list) and its connection managers are not used.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence

import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from libp2p.abc import INetConn, INetStream
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.custom_types import TProtocol
from libp2p.host.basic_host import BasicHost
from libp2p.kad_dht.common import PROTOCOL_ID
from libp2p.network.connection.swarm_connection import SwarmConn
from libp2p.network.exceptions import SwarmException
from libp2p.network.swarm import Swarm
from libp2p.peer.id import ID
from libp2p.peer.peerstore import PeerStore, PeerStoreError
from libp2p.transport.upgrader import TransportUpgrader
from multiaddr import Multiaddr

from protocol.errors import SwarmError
from protocol.transport.libp2p.muxed import MuxedConnection, MuxedStream
from protocol.transport.libp2p.peers import BoundedPeers
from protocol.transport.libp2p.streams import AcceptedStream
from protocol.transport.limits import HOST_STREAM_BYTES
from protocol.transport.quic.connection import Connection

logger = logging.getLogger(__name__)

Dial = Callable[[str, Sequence[str]], Awaitable[Connection]]


class AdoptingSwarm(Swarm):
    """A swarm whose connections are made elsewhere and adopted."""

    def __init__(self, peer_id: ID, peerstore: PeerStore, dial: Dial) -> None:
        super().__init__(peer_id, peerstore, TransportUpgrader({}, {}), [])
        self._dial = dial
        self._adopted: dict[Connection, SwarmConn] = {}

    async def run(self) -> None:
        """Run what the host starts, and no pruner and no auto-connector."""
        async with trio.open_nursery() as nursery:
            self.background_nursery = nursery
            self.event_background_nursery_created.set()
            await self.manager.wait_finished()
            nursery.cancel_scope.cancel()

    async def dial_peer(self, peer_id: ID) -> list[INetConn]:
        """The connection to `peer_id`, made if need be. Raises: SwarmException."""
        try:
            addrs = [str(addr) for addr in self.peerstore.addrs(peer_id)]
        except PeerStoreError:
            addrs = []
        try:
            connection = await self._dial(peer_id.to_base58(), addrs)
        except SwarmError as error:
            raise SwarmException(str(error)) from error
        return [self.adopted(connection)]

    def adopted(self, connection: Connection) -> SwarmConn:
        """The host's view of `connection`."""
        known = self._adopted.get(connection)
        if known is None:
            direction = "outbound" if connection.is_dialler else "inbound"
            known = self._adopted[connection] = SwarmConn(MuxedConnection(connection), self, direction)
            known.set_transport_info(
                known.muxed_conn.get_transport_addresses(), known.muxed_conn.get_connection_type()
            )
            known.event_started.set()
            self.connections.setdefault(known.muxed_conn.peer_id, []).append(known)
        return known

    async def follow(self, connection: Connection) -> None:
        """Tell the host of `connection`, and of its end."""
        swarm_conn = self.adopted(connection)
        try:
            await self.notify_connected(swarm_conn)
            await connection.closed.wait()
            swarm_conn.event_closed.set()
            self._adopted.pop(connection, None)
            self.remove_conn(swarm_conn)
            await self.notify_disconnected(swarm_conn)
        except Exception:
            logger.exception("the host failed with the connection to %s", connection.peer)


class Host(BasicHost):
    """A host that tells when a peer's protocols are known."""

    def __init__(self, network: AdoptingSwarm, addrs: Sequence[str]) -> None:
        fixed = [Multiaddr(addr) for addr in addrs]
        super().__init__(
            network, addrs_factory=lambda _: list(fixed), disable_identify_address_discovery=True
        )
        self.network = network
        self.on_identified: Callable[[ID], Awaitable[None]] | None = None

    def speaks(self, protocol: str) -> bool:
        """Whether the host itself handles `protocol`."""
        return TProtocol(protocol) in self.multiselect.handlers

    async def handle(self, connection: Connection, stream: AcceptedStream, protocol: str) -> None:
        """Run the host's handler for a stream whose protocol is agreed on; never raises but for cancellation."""
        handler = self.multiselect.handlers[TProtocol(protocol)]
        swarm_conn = self.network.adopted(connection)
        net_stream: INetStream | None = None
        try:
            if handler is not None and isinstance(swarm_conn.muxed_conn, MuxedConnection):
                most = None if protocol == PROTOCOL_ID else HOST_STREAM_BYTES
                muxed = MuxedStream(swarm_conn.muxed_conn, stream, most)
                net_stream = await swarm_conn._add_stream(muxed)
                net_stream.set_protocol(TProtocol(protocol))
                await handler(net_stream)
            await stream.aclose()
        except Exception:
            logger.debug("the host's handler of %s failed", protocol, exc_info=True)
        finally:
            stream.reset()
            if net_stream is not None:
                swarm_conn.remove_stream(net_stream)  # type: ignore[arg-type]

    async def _identify_peer(self, peer_id: ID, *, reason: str) -> None:
        # This runs in a system task, where an exception would end the whole process.
        try:
            await super()._identify_peer(peer_id, reason=reason)
            if self.on_identified is not None and self.get_network().get_connections(peer_id):
                await self.on_identified(peer_id)
        except Exception:
            logger.debug("identify failed with %s", peer_id, exc_info=True)


def make_host(identity: Ed25519PrivateKey, addrs: Sequence[str], dial: Dial) -> Host:
    """A host for `identity` that advertises `addrs`."""
    key_pair = create_new_key_pair(identity.private_bytes_raw())
    peer_id = ID.from_pubkey(key_pair.public_key)
    peerstore = BoundedPeers(peer_id)
    peerstore.add_key_pair(peer_id, key_pair)
    return Host(AdoptingSwarm(peer_id, peerstore, dial), addrs)
