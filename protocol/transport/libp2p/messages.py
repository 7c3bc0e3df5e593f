"""Kademlia's messages on a stream: protobuf with a varint length before it."""

from __future__ import annotations

from google.protobuf.message import DecodeError
from libp2p.kad_dht.pb.kademlia_pb2 import Message

from protocol.errors import Lost, Malformed, TooLarge
from protocol.transport.base import Stream
from protocol.transport.limits import DHT_MAX_MESSAGE

_MAX_VARINT_BYTES = 4  # more than DHT_MAX_MESSAGE needs


async def write_message(stream: Stream, message: Message) -> None:
    """Send `message`."""
    body = message.SerializeToString()
    size, prefix = len(body), bytearray()
    while size >= 0x80:
        prefix.append(size & 0x7F | 0x80)
        size >>= 7
    prefix.append(size)
    await stream.send(bytes(prefix) + body)


async def read_message(stream: Stream) -> Message:
    """The next message. Raises: Lost, if the stream ends before; Malformed; TooLarge."""
    buffer = b""
    while (bounds := _bounds(buffer)) is None or len(buffer) < bounds[1]:
        data = await stream.receive()
        if not data:
            raise Lost("the stream ended within a message")
        buffer += data
    message = Message()
    try:
        message.ParseFromString(buffer[bounds[0] : bounds[1]])
    except DecodeError as error:
        raise Malformed("no message of Kademlia") from error
    return message


def _bounds(buffer: bytes) -> tuple[int, int] | None:
    size = 0
    for index, byte in enumerate(buffer[:_MAX_VARINT_BYTES]):
        size |= (byte & 0x7F) << 7 * index
        if not byte & 0x80:
            if size > DHT_MAX_MESSAGE:
                raise TooLarge(f"a DHT message of {size} bytes")
            return index + 1, index + 1 + size
    if len(buffer) >= _MAX_VARINT_BYTES:
        raise Malformed("no length before a message")
    return None
