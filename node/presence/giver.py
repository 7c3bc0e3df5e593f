"""Gives weights to whoever asks for them: which stages are here, what they consist of, and their parcels."""

from __future__ import annotations

from typing import Final

import trio

from node.presence.shelf import Place, Shelf
from node.presence.upload import Upload
from protocol import limits
from protocol.codec import encode
from protocol.errors import Busy
from protocol.messages import (
    WEIGHTS_PROTOCOL,
    Error,
    HoldingsReply,
    HoldingsRequest,
    InventoryReply,
    InventoryRequest,
    Message,
    ParcelReply,
    ParcelRequest,
)
from protocol.talk.channel import Channel
from protocol.transport.allowance import PeerAllowance
from protocol.transport.base import Stream, Transport
from protocol.transport.slots import Slot, Slots

# A node asks what is here, fetches over one stream, and again if that was lost; more often is a restart loop.
STREAMS_BURST: Final = 16
STREAMS_PER_S: Final = 0.5
# Conversations at once; each holds a parcel and its frame, and half a MiB on its way: 40 MiB in all.
STREAMS: Final = 16
# Files read at once.
_READERS: Final = 2


class Giver:
    """Serves what is on the shelf, as fast as `upload` allows."""

    def __init__(self, shelf: Shelf, upload: Upload) -> None:
        self._shelf = shelf
        self._upload = upload
        self._allowance = PeerAllowance(STREAMS_PER_S, STREAMS_BURST)
        self._slots = Slots(STREAMS)
        self._readers = trio.CapacityLimiter(_READERS)
        self.given_bytes = 0  # of parcels

    def serve(self, transport: Transport) -> None:
        """Answer from now on."""
        transport.serve(WEIGHTS_PROTOCOL, self.handle)

    async def handle(self, stream: Stream) -> None:
        """One conversation: requests in any order, as many as wanted.

        Raises: Busy, if the peer comes too often, or had to give way; PeerUnavailable; RemoteProtocolError.
        """
        if not self._allowance.take(stream.origin, stream.peer, trio.current_time()):
            raise Busy(f"{stream.peer} asks for weights too often")
        async with Channel(stream, frame_limit=limits.WEIGHTS_REQUEST_BYTES) as channel:
            with self._slots.taken(stream) as slot:
                while True:
                    with trio.move_on_after(limits.FIRST_MESSAGE_TIMEOUT_S) as waiting:
                        request = await channel.receive()
                    if waiting.cancelled_caught or not await self._answer(channel, slot, request):
                        return

    async def _answer(self, channel: Channel, slot: Slot, request: Message | None) -> bool:
        """Whether the conversation goes on."""
        match request:
            case HoldingsRequest() if request.model == self._shelf.model:
                return await self._send(channel, slot, HoldingsReply(tuple(self._shelf.stages)))
            case HoldingsRequest():
                await channel.send(Error("unknown_model", "this node gives weights of another model", True))
            case InventoryRequest():
                inventory = self._shelf.inventory(request.stage)
                if inventory is not None:
                    return await self._send(channel, slot, InventoryReply(inventory))
                await channel.send(Error("unknown_stage", "this node does not have these weights", True))
            case ParcelRequest():
                place = self._shelf.place(request.parcel)
                if place is not None:
                    return await self._give(channel, slot, place)
                await channel.send(Error("unknown_parcel", "this node does not have this parcel", True))
        return False

    async def _give(self, channel: Channel, slot: Slot, place: Place) -> bool:
        data = await trio.to_thread.run_sync(place.read, limiter=self._readers)
        self.given_bytes += len(data)
        return await self._send(channel, slot, ParcelReply(data))

    async def _send(self, channel: Channel, slot: Slot, message: Message) -> bool:
        stream, frame = channel.stream, memoryview(encode(message))
        stream.keep()
        while frame:
            some = frame[: self._upload.slice_bytes]
            await self._upload.turn(stream.origin, len(some))
            await slot.send(stream, some, limits.CONTROL_TIMEOUT_S)
            frame = frame[len(some) :]
        return True
