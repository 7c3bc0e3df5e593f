"""multistream-select 1.0: agreeing on a stream's protocol, from either side, in one flight where possible.

The opener sends the header, the protocol it wants and its first data together; the answer is read when the
first data are received. A responder that does not speak the protocol answers "na" (specification
"multistream-select").
"""

from __future__ import annotations

from typing import Protocol

from protocol.errors import Lost, Malformed, Unreachable

HEADER = "/multistream/1.0.0"
NOT_AVAILABLE = "na"
NEGOTIATION_FAILED = 0x1001  # specification "Error Codes": no protocol in common
_MAX_LINE_BYTES = 1024  # specification: lines are at most 1,024 bytes, with the newline


class ByteStream(Protocol):
    """What is needed of a stream."""

    async def receive(self) -> bytes:
        """The next bytes."""


def encode_line(text: str) -> bytes:
    """`text` with its newline and its length before it."""
    body = text.encode() + b"\n"
    size = len(body)
    prefix = bytes((size,)) if size < 0x80 else bytes((size & 0x7F | 0x80, size >> 7))
    return prefix + body


def proposal(protocol: str) -> bytes:
    """An opener's first flight."""
    return encode_line(HEADER) + encode_line(protocol)


class LineReader:
    """Lines from the start of a stream; `rest` is what came after them."""

    def __init__(self, stream: ByteStream) -> None:
        self._stream = stream
        self._buffer = b""

    @property
    def rest(self) -> bytes:
        """Bytes read and not used."""
        return self._buffer

    async def line(self) -> str:
        """The next line. Raises: Malformed; Lost, if the stream ends before."""
        while (parsed := self._parse()) is None:
            data = await self._stream.receive()
            if not data:
                raise Lost("the stream ended while a protocol was agreed on")
            self._buffer += data
        return parsed

    def feed(self, data: bytes) -> None:
        """Bytes that arrived another way."""
        self._buffer += data

    def next_is(self, text: str) -> bool:
        """Whether `text` is the next line after a header, if that has not been read yet."""
        return self._buffer.removeprefix(encode_line(HEADER)).startswith(encode_line(text))

    def _parse(self) -> str | None:
        if not self._buffer:
            return None
        size, start = self._buffer[0], 1
        if size & 0x80:
            if len(self._buffer) < 2:
                return None
            size, start = size & 0x7F | self._buffer[1] << 7, 2
        if not 0 < size <= _MAX_LINE_BYTES:
            raise Malformed("no line of multistream-select")
        if len(self._buffer) < start + size:
            return None
        body, self._buffer = self._buffer[start : start + size], self._buffer[start + size :]
        if body[-1:] != b"\n":
            raise Malformed("no line of multistream-select")
        try:
            return body[:-1].decode("ascii")
        except UnicodeDecodeError:
            raise Malformed("no line of multistream-select") from None


async def read_answer(lines: LineReader, peer: str, protocol: str) -> None:
    """The responder's answer to `proposal`. Raises: Unreachable, if it does not speak `protocol`."""
    header = await lines.line()
    answer = await lines.line()
    if header != HEADER:
        raise Malformed(f"peer {peer} answers {header[:50]!r} where {HEADER} is due")
    if answer != protocol:
        raise Unreachable(f"peer {peer} does not speak {protocol}")
