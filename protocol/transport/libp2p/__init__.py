"""The transport that real peers use: our QUIC endpoint, with py-libp2p's identify and Kademlia over it.

`open_transport` is the way in. Knows nothing of models or sessions.
"""

from __future__ import annotations

import errno
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Literal

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from libp2p.tools.anyio_service import background_trio_service

from protocol.errors import ConfigError
from protocol.transport.addresses import Address, parse_address, with_peer
from protocol.transport.background import background_tasks
from protocol.transport.libp2p.dht import KadDht
from protocol.transport.libp2p.host import Host, make_host
from protocol.transport.libp2p.interfaces import dialable
from protocol.transport.libp2p.kad_server import KadServer
from protocol.transport.libp2p.patches import apply_patches
from protocol.transport.libp2p.transport import Libp2pTransport
from protocol.transport.limits import IDLE_TIMEOUT_S
from protocol.transport.quic.endpoint import Endpoint, open_endpoint
from protocol.transport.validator import DhtValidator

__all__ = ["Libp2pTransport", "open_transport"]


@asynccontextmanager
async def open_transport(
    identity: Ed25519PrivateKey,
    *,
    listen: Sequence[str] = (),
    announce: Sequence[str] = (),
    dht: Literal["server", "client"] = "server",
    validate: DhtValidator,
    idle_timeout_s: float = IDLE_TIMEOUT_S,
) -> AsyncIterator[Libp2pTransport]:
    """This peer's place in the network; leaving says goodbye on every connection.

    `listen` are addresses such as "/ip4/0.0.0.0/udp/0/quic-v1"; without any, this peer only dials. `announce`
    replaces what others are told, for a peer behind a forwarded port. A "client" uses the DHT without serving it.

    Raises: ConfigError, if an address is malformed or cannot be had.
    """
    apply_patches()
    places = [_listen_address(text) for text in listen]
    announced = [parse_address(text) for text in announce]
    async with (
        open_endpoint(identity, idle_timeout_s=idle_timeout_s) as endpoint,
        background_tasks() as nursery,
    ):
        bound = [_bind(endpoint, place) for place in places]
        addrs = tuple(
            dict.fromkeys(str(with_peer(place, endpoint.peer)) for place in announced or _expand(bound))
        )
        transport = Libp2pTransport(endpoint, nursery, addrs if listen or announce else ())
        host = make_host(identity, transport.addrs, transport.connection)
        server = KadServer(host, dht == "server", validate, endpoint.origin_of_peer)
        host.on_identified = server.identified
        transport.attach(host, KadDht(server, transport.open_stream, transport.addrs, validate))
        async with _running(host, server):
            endpoint.accepting = bool(listen)
            try:
                yield transport
            finally:
                endpoint.accepting = False
                endpoint.close_connections()


@asynccontextmanager
async def _running(host: Host, server: KadServer) -> AsyncIterator[None]:
    """py-libp2p's services; what the body raises passes as it is, not in their nurseries' groups."""
    failure: Exception | None = None
    async with host.run(listen_addrs=[]), background_trio_service(server):
        try:
            yield
        except Exception as error:  # noqa: BLE001  # raised again below
            failure = error
    if failure is not None:
        raise failure


def _listen_address(text: str) -> Address:
    address = parse_address(text)
    if address.is_name:
        raise ConfigError(f"cannot listen on {text!r}: give an IP address")
    return address


def _bind(endpoint: Endpoint, place: Address) -> Address:
    try:
        port = endpoint.bind(place.host, place.port)
    except OSError as error:
        reason = "the port is taken" if error.errno == errno.EADDRINUSE else error.strerror
        raise ConfigError(f"cannot listen on {place}: {reason}") from None
    return Address(place.host, port.port, None, place.kind)


def _expand(places: Sequence[Address]) -> list[Address]:
    return [Address(host, place.port, None, place.kind) for place in places for host in dialable(place.host)]
