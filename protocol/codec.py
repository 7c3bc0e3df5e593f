"""Bytes <-> messages. A frame is a length (4 bytes, big-endian, bounded) and one msgpack map with a "t"ag.

The decoder's law: any bytes give messages, "need more", or RemoteProtocolError; nothing else.
"""

from __future__ import annotations

from typing import Any, Final

import msgpack

from protocol import limits
from protocol.errors import LocalProtocolError, Malformed, TooLarge
from protocol.fields import pack_fields, parse_fields
from protocol.messages import BY_TAG, Message

LENGTH_BYTES: Final = 4


def encode(message: Message) -> bytes:
    """One frame. Raises: LocalProtocolError, if the message is above the frame limit."""
    body: bytes = msgpack.packb({"t": message.tag, **pack_fields(message)})
    if len(body) > limits.FRAME_BYTES:
        raise LocalProtocolError(f"a {message.tag} message of {len(body)} bytes does not fit a frame")
    return len(body).to_bytes(LENGTH_BYTES, "big") + body


def decode(body: bytes | memoryview) -> Message:
    """The message in one frame's body. Raises: Malformed or TooLarge."""
    try:
        value: Any = msgpack.unpackb(
            body,
            max_map_len=64,
            max_array_len=max(limits.MAP_RECORDS, limits.ASKED_IDS),
            max_ext_len=0,
            strict_map_key=True,
        )
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException) as error:
        raise Malformed(f"not msgpack: {error}") from error
    if not isinstance(value, dict):
        raise Malformed("a frame holds one map")
    tag = value.pop("t", None)
    cls = BY_TAG.get(tag) if isinstance(tag, str) else None
    if cls is None:
        raise Malformed("unknown message")
    message: Message = parse_fields(cls, value)
    return message


class FrameReader:
    """Gathers bytes as they arrive into messages.

    `limit` bounds the body of a frame in bytes; a longer one is refused when its length is read, before any
    of it is stored.
    """

    def __init__(self, limit: int = limits.FRAME_BYTES) -> None:
        self.limit = limit
        self._buffer = bytearray()

    def feed(self, data: bytes | memoryview) -> None:
        """Take bytes from the stream."""
        self._buffer += data

    def next(self) -> Message | None:
        """The next whole message, or None if more bytes are needed. Raises: Malformed or TooLarge."""
        if len(self._buffer) < LENGTH_BYTES:
            return None
        size = int.from_bytes(self._buffer[:LENGTH_BYTES], "big")
        if size > self.limit:
            raise TooLarge(f"a frame of {size} bytes, at most {self.limit} allowed")
        end = LENGTH_BYTES + size
        if len(self._buffer) < end:
            return None
        with memoryview(self._buffer) as view:
            message = decode(view[LENGTH_BYTES:end])
        del self._buffer[:end]
        return message

    @property
    def pending(self) -> int:
        """Bytes of an unfinished frame."""
        return len(self._buffer)
