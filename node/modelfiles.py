"""Hands out the manifest and the small files of the model, so that clients need nothing but an address."""

from __future__ import annotations

from collections.abc import Mapping

import trio

from node.serving import Allowance, guarded
from protocol import limits
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
from protocol.transport.base import Stream, Transport
from protocol.transport.channel import Channel

# A client fetches a model's files once and keeps them: a few times in a minute is a restart loop at most.
STREAMS_BURST = 8
STREAMS_PER_S = 0.2
# Fetching at once; each holds a chunk.
STREAMS = 32


class ModelFiles:
    """Serves the files named by `manifest`, whose bytes are `contents`."""

    def __init__(self, manifest: Manifest, contents: Mapping[str, bytes]) -> None:
        self._manifest = manifest
        self._digest = manifest.digest
        self._contents = dict(contents)
        self._allowance = Allowance(STREAMS_PER_S, STREAMS_BURST)
        self._streams = 0

    def serve(self, transport: Transport) -> None:
        """Answer from now on."""
        transport.serve(MODEL_PROTOCOL, guarded(self.handle))

    async def handle(self, stream: Stream) -> None:
        """One conversation: the manifest, then the files asked for, in any order.

        Raises: Busy, if the peer asks too often; PeerUnavailable; RemoteProtocolError.
        """
        if self._streams >= STREAMS or not self._allowance.take(stream.peer, trio.current_time()):
            raise Busy(f"{stream.peer} asks for model files too often")
        self._streams += 1
        try:
            async with Channel(stream, frame_limit=limits.CONTROL_FRAME_BYTES) as channel:
                await self._converse(channel)
        finally:
            self._streams -= 1

    async def _converse(self, channel: Channel) -> None:
        for _ in range(1 + 2 * limits.MODEL_FILES):
            with trio.move_on_after(limits.FIRST_MESSAGE_TIMEOUT_S):
                request = await channel.receive()
                if not await self._answer(channel, request):
                    return
                continue
            return

    async def _answer(self, channel: Channel, request: Message | None) -> bool:
        """Whether the conversation goes on."""
        if isinstance(request, ManifestRequest):
            if request.model != self._digest:
                here = self._digest.hex()[:12]
                await channel.send(Error("unknown_model", f"this node has the files of model {here}", True))
                return False
            await channel.send(ManifestReply(self._manifest.encode()))
            return True
        if isinstance(request, FileRequest):
            data = self._contents.get(request.name)
            if data is None:
                await channel.send(Error("unknown_file", "the manifest names no such file", False))
                return False
            await self._send_file(channel, data)
            return True
        return False

    async def _send_file(self, channel: Channel, data: bytes) -> None:
        chunk_bytes = limits.FILE_CHUNK_BYTES
        for start in range(0, max(1, len(data)), chunk_bytes):
            chunk = data[start : start + chunk_bytes]
            with trio.fail_after(limits.CONTROL_TIMEOUT_S):
                await channel.send(FileChunk(chunk, start + chunk_bytes >= len(data)))
