"""Streams to other nodes on behalf of clients: only to where a node is known to be.

A client names a peer, never a place: what it says about places could be anybody's, and a node that dialled it would
scan ports and flood strangers for whoever asks.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import trio

from node.compute.scheduler import Owner
from protocol import limits
from protocol.errors import Busy, PeerUnavailable, Unreachable
from protocol.messages import SESSION_PROTOCOL
from protocol.transport.allowance import Allowance, PeerAllowance
from protocol.transport.base import Stream, Transport

logger = logging.getLogger(__name__)

AddressesOf = Callable[[str], tuple[str, ...]]


class Neighbours:
    """`addresses_of` a peer are those at which it was really met: gossip meets every node sooner or later."""

    def __init__(self, transport: Transport, addresses_of: AddressesOf = lambda _: ()) -> None:
        self._transport = transport
        self._addresses_of = addresses_of
        self._of_peer = PeerAllowance(limits.LINKS_PER_S, limits.LINKS_BURST)
        self._of_origin = Allowance(2 * limits.LINKS_PER_S, 2 * limits.LINKS_BURST)

    async def open_stream(self, peer: str, asker: Owner, *, forks: bool = False) -> Stream:
        """A session stream to `peer`, for the client that is `asker`; what it `forks` was charged for.

        Over the connection there is, else by dialling, which takes as long whatever it fails with: how it fails would
        tell the asker about places. Raises: PeerUnavailable.
        """
        now, transport = trio.current_time(), self._transport
        known = peer == transport.peer or transport.place_of(peer) is not None
        if not (forks and known) and not self._may_link(asker, now):
            raise Busy(f"{asker.peer} asks for too many links")
        addrs = () if known else self._addresses_of(peer)
        if not known and not addrs:
            raise Unreachable(f"{peer} was not met yet")
        with trio.move_on_after(limits.LINK_TIMEOUT_S):
            try:
                return await transport.open_stream(peer, addrs, SESSION_PROTOCOL)
            except PeerUnavailable as error:
                if known:
                    raise
                logger.info("no link to %s: %s", peer, error)
                await trio.sleep_forever()
        raise Unreachable(f"{peer} was not reached within {limits.LINK_TIMEOUT_S:g} s")

    def _may_link(self, asker: Owner, now: float) -> bool:
        return self._of_peer.take(*asker, now) and self._of_origin.take(asker.origin, now)
