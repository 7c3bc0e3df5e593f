"""What has to be changed inside py-libp2p 0.8.1, each with the finding it answers.

Most of its faults are avoided by not using the code at fault: its QUIC transport, its dialler, its stream
negotiation and its DHT client are replaced (see `host`, `transport`, `dht`). What is left are constants of
modules. They are set when a transport is opened, never at import, and setting them again changes nothing.
"""

from __future__ import annotations

import logging
import os

from libp2p.kad_dht import kad_dht, peer_routing, provider_store, value_store

from protocol.transport.limits import DHT_MAX_MESSAGE, DHT_QUERY_TIMEOUT_S


def apply_patches() -> None:
    """Apply all of them."""
    _dead_nodes_cost_little()
    _messages_are_small()
    _quiet_unless_asked()


def _dead_nodes_cost_little() -> None:
    """A dead node costs each query of the routing table's refresh 10 s, and a refresh makes hundreds."""
    for module in (kad_dht, peer_routing, provider_store, value_store):
        module.QUERY_TIMEOUT = DHT_QUERY_TIMEOUT_S  # type: ignore[attr-defined]


def _messages_are_small() -> None:
    """Up to 4 MiB are held for each stream on which a peer has announced as much."""
    for module in (kad_dht, peer_routing, provider_store, value_store):
        module.MAX_DHT_MESSAGE_SIZE = DHT_MAX_MESSAGE  # type: ignore[attr-defined]


def _quiet_unless_asked() -> None:
    """Every dead node and every stream that ends costs warnings and errors: thousands an hour in a small swarm.

    Importing libp2p sets its logger to WARNING without a handler, which prints to standard error. Another level,
    or libp2p's own variable LIBP2P_DEBUG, says that somebody wants to see them: then they are left alone.
    """
    libp2p = logging.getLogger("libp2p")
    if libp2p.level == logging.WARNING and not os.environ.get("LIBP2P_DEBUG"):
        libp2p.setLevel(logging.CRITICAL)
    aioquic = logging.getLogger("quic")
    if aioquic.level == logging.NOTSET:
        aioquic.setLevel(logging.ERROR)
