"""Asking a peer for weights: which it has, what they consist of, and parcels of them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Final

from protocol import limits
from protocol.errors import Malformed
from protocol.inventory import Inventory, parse_inventory
from protocol.messages import (
    WEIGHTS_PROTOCOL,
    HoldingsReply,
    HoldingsRequest,
    InventoryReply,
    InventoryRequest,
    ParcelReply,
)
from protocol.talk.channel import Channel
from protocol.transport.base import Transport

# The longest takes no longer at the pace below which a peer is given up.
_INVENTORY_WITHIN_S: Final = limits.CONTROL_TIMEOUT_S + limits.INVENTORY_BYTES / limits.PARCEL_BYTES_PER_S
# The longest that comes: an inventory.
_FRAME_BYTES: Final = limits.CONTROL_FRAME_BYTES


async def open_weights(transport: Transport, peer: str, addrs: Sequence[str]) -> Channel:
    """A stream on which `peer` is asked for weights. Raises: PeerUnavailable."""
    stream = await transport.open_stream(peer, addrs, WEIGHTS_PROTOCOL)
    return Channel(stream, frame_limit=_FRAME_BYTES)


async def ask_holdings(channel: Channel, model: bytes, stages: int) -> dict[int, bytes]:
    """The stage digests of what the peer gives of a model of so many stages, by stage.

    Raises: PeerUnavailable; Malformed, if it says so of more stages or fewer.
    """
    await channel.send(HoldingsRequest(model))
    reply = await channel.expect(HoldingsReply, limits.CONTROL_TIMEOUT_S)
    if len(reply.stages) != stages:
        raise Malformed(f"{channel.peer} speaks of {len(reply.stages)} stages of {stages}")
    return {stage: digest for stage, digest in enumerate(reply.stages) if digest is not None}


async def ask_inventory(channel: Channel, digest: bytes) -> Inventory:
    """What the stage of this digest consists of. Raises: PeerUnavailable; RemoteProtocolError, if it is another's."""
    await channel.send(InventoryRequest(digest))
    reply = await channel.expect(InventoryReply, _INVENTORY_WITHIN_S)
    return parse_inventory(reply.inventory, digest)


async def next_parcel(channel: Channel, size: int) -> bytes:
    """The parcel of `size` bytes that was asked for first, of those that have not come; to be checked.

    Raises: TimedOut, where it comes slower than any peer may; PeerUnavailable; Malformed, if it has another size.
    """
    reply = await channel.expect(ParcelReply, limits.CONTROL_TIMEOUT_S + size / limits.PARCEL_BYTES_PER_S)
    if len(reply.data) != size:
        raise Malformed(f"{channel.peer} gives a parcel of {len(reply.data)} bytes, not {size}")
    return reply.data


def check_parcel(data: bytes, hash_: bytes, peer: str) -> None:
    """Raises Malformed unless these are the bytes that the hash names."""
    if hashlib.sha256(data).digest() != hash_:
        raise Malformed(f"{peer} gives a parcel that is not the one asked for")
