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
from protocol.unpack import unpack

LENGTH_BYTES: Final = 4
# From here on msgpack's long form of bytes is also the shortest one, and a copy costs more than a list entry.
_LARGE_BYTES: Final = 64 * 1024
_BYTES: Final = (bytes, memoryview)
_PACKER: Final = msgpack.Packer()


def encode(message: Message) -> bytes:
    """One frame. Raises: LocalProtocolError, if the message is above the frame limit."""
    fields = {"t": message.tag, **pack_fields(message)}
    pieces: list[bytes | memoryview] = []
    if _has_large(fields):
        _pack(fields, pieces)
    else:
        pieces.append(_PACKER.pack(fields))
    size = sum(map(len, pieces))
    if size > limits.FRAME_BYTES:
        raise LocalProtocolError(f"a {message.tag} message of {size} bytes does not fit a frame")
    return b"".join((size.to_bytes(LENGTH_BYTES, "big"), *pieces))


def _has_large(fields: dict[str, Any]) -> bool:
    """Whether any of the bytes within are large."""
    for value in fields.values():
        kind = type(value)
        if kind is dict:
            if _has_large(value):
                return True
        elif kind in _BYTES and len(value) >= _LARGE_BYTES:
            return True
    return False


def _pack(value: Any, pieces: list[bytes | memoryview]) -> None:
    """Append the msgpack of `value`. Large bytes stand for themselves and are copied once, in the join."""
    if isinstance(value, dict):
        pieces.append(_PACKER.pack_map_header(len(value)))
        for key, entry in value.items():
            pieces.append(_PACKER.pack(key))
            _pack(entry, pieces)
    elif type(value) in _BYTES and len(value) >= _LARGE_BYTES:
        pieces.append(b"\xc6" + len(value).to_bytes(4, "big"))  # msgpack's bin 32
        pieces.append(value)
    else:
        pieces.append(_PACKER.pack(value))


def decode(body: bytes | memoryview) -> Message:
    """The message in one frame's body. Raises: Malformed or TooLarge."""
    value: Any = unpack(body, max(limits.MAP_RECORDS, limits.ASKED_IDS))
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
        with memoryview(self._buffer) as view, view[LENGTH_BYTES:end] as body:
            message = decode(body)
        del self._buffer[:end]
        return message

    @property
    def pending(self) -> int:
        """Bytes of an unfinished frame."""
        return len(self._buffer)
