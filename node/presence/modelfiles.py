"""Hands out the manifest and the small files of the model, so that clients need nothing but an address."""

from __future__ import annotations

from collections.abc import Mapping

import trio

from protocol import limits
from protocol.codec import encode
from protocol.errors import Busy
from protocol.messages import (
    MODEL_PROTOCOL,
    Error,
    FileChunk,
    FileRequest,
    ManifestReply,
    ManifestRequest,
    Message,
)
from protocol.model import Manifest
from protocol.talk.channel import Channel
from protocol.transport.allowance import Allowance, PeerAllowance
from protocol.transport.base import Stream, Transport
from protocol.transport.slots import Slot, Slots

# A client fetches a model's files once and keeps them: a few times in a minute is a restart loop at most.
STREAMS_BURST = 8
STREAMS_PER_S = 0.2
# Bytes for one origin: two of the largest tokenizers in use at once, then at a speed that leaves most of a core. Who
# wants more waits, and looks again after the pause: with all slots taken each still has twice `FILE_BYTES_PER_S`.
BYTES_BURST = 64 * limits.MIB
BYTES_PER_S = 8 * limits.MIB
PAUSE_S = 0.05
# Fetching at once; each holds a piece of a file, or has yet to ask for one.
STREAMS = 16


class ModelFiles:
    """Serves the files named by `manifest`, whose bytes are `contents`."""

    def __init__(self, manifest: Manifest, contents: Mapping[str, bytes]) -> None:
        self._manifest = manifest
        self._digest = manifest.digest
        self._contents = dict(contents)
        self._allowance = PeerAllowance(STREAMS_PER_S, STREAMS_BURST)
        self._bytes = Allowance(BYTES_PER_S, BYTES_BURST)
        self._slots = Slots(STREAMS)

    def serve(self, transport: Transport) -> None:
        """Answer from now on."""
        transport.serve(MODEL_PROTOCOL, self.handle)

    async def handle(self, stream: Stream) -> None:
        """One conversation: the manifest, then the files asked for, in any order.

        Raises: Busy, if the peer asks too often; PeerUnavailable; RemoteProtocolError.
        """
        if not self._allowance.take(stream.origin, stream.peer, trio.current_time()):
            raise Busy(f"{stream.peer} asks for model files too often")
        async with Channel(stream, frame_limit=limits.FILE_REQUEST_BYTES) as channel:
            with self._slots.taken(stream) as slot:
                await self._converse(channel, slot)

    async def _converse(self, channel: Channel, slot: Slot) -> None:
        for _ in range(1 + 2 * limits.MODEL_FILES):
            with trio.move_on_after(limits.FIRST_MESSAGE_TIMEOUT_S) as waiting:
                request = await channel.receive()
            if waiting.cancelled_caught or not await self._answer(channel, slot, request):
                return

    async def _answer(self, channel: Channel, slot: Slot, request: Message | None) -> bool:
        """Whether the conversation goes on."""
        if isinstance(request, ManifestRequest):
            if request.model != self._digest:
                here = self._digest.hex()[:12]
                await channel.send(Error("unknown_model", f"this node has the files of model {here}", True))
                return False
            channel.stream.keep()
            await self._send(channel, slot, ManifestReply(self._manifest.encode()))
            return True
        if isinstance(request, FileRequest):
            data = self._contents.get(request.name)
            if data is None:
                await channel.send(Error("unknown_file", "the manifest names no such file", False))
                return False
            channel.stream.keep()
            await self._send_file(channel, slot, data)
            return True
        return False

    async def _send_file(self, channel: Channel, slot: Slot, data: bytes) -> None:
        size = limits.FILE_CHUNK_BYTES
        for start in range(0, max(1, len(data)), size):
            await self._send(channel, slot, FileChunk(data[start : start + size], start + size >= len(data)))

    async def _send(self, channel: Channel, slot: Slot, message: Message) -> None:
        stream, frame = channel.stream, encode(message)
        while not self._bytes.take(stream.origin, trio.current_time(), len(frame)):  # noqa: ASYNC110 - time does it
            await trio.sleep(PAUSE_S)
        await slot.send(stream, frame, limits.CONTROL_TIMEOUT_S)
