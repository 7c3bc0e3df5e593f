"""What a stranger's first packet says, and the two answers that need no connection. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from aioquic.quic.packet import encode_quic_retry, encode_quic_version_negotiation

from protocol.transport.quic.core import VERSIONS

_MAX_CID_BYTES = 20  # RFC 9000, section 17.2
_SMALLEST_FIRST_DATAGRAM = 1200  # RFC 9000, section 14.1
_SMALLEST_FIRST_CID = 8  # RFC 9000, section 7.2
_TYPE_BITS, _INITIAL = 0x70, 0x40  # the fixed bit, and type Initial of version 1 (RFC 9000, section 17.2)


@dataclass(frozen=True, slots=True)
class Initial:
    """The readable part of a packet with a long header."""

    first_byte: int
    version: int
    destination_cid: bytes
    source_cid: bytes
    token: bytes = b""  # ours from an earlier `retry`, if the packet is a client's first of version 1

    @property
    def version_is_spoken(self) -> bool:
        """Whether we know how to go on reading."""
        return self.version in VERSIONS

    def opens_connection(self, datagram_bytes: int) -> bool:
        """Whether a server may start a connection for it."""
        return (
            self.first_byte & _TYPE_BITS == _INITIAL
            and datagram_bytes >= _SMALLEST_FIRST_DATAGRAM
            and len(self.destination_cid) >= _SMALLEST_FIRST_CID
        )


def parse_initial(data: bytes) -> Initial | None:
    """The long header at the start of `data`, of any version; None if it is none."""
    if len(data) < 7 or not data[0] & 0x80:
        return None
    destination_end = 6 + data[5]
    if data[5] > _MAX_CID_BYTES or len(data) <= destination_end:
        return None
    source_end = destination_end + 1 + data[destination_end]
    if data[destination_end] > _MAX_CID_BYTES or len(data) < source_end:
        return None
    version = int.from_bytes(data[1:5], "big")
    destination_cid, source_cid = data[6:destination_end], data[destination_end + 1 : source_end]
    token = b""
    if version in VERSIONS and data[0] & _TYPE_BITS == _INITIAL and len(data) > source_end + 2:
        form, size, start = data[source_end] >> 6, data[source_end] & 0x3F, source_end + 1
        if form == 1:  # a variable-length integer of two bytes; no token of ours needs more
            size, start = size << 8 | data[start], start + 1
        if form < 2 and len(data) >= start + size:
            token = data[start : start + size]
    return Initial(data[0], version, destination_cid, source_cid, token)


def version_negotiation(initial: Initial, datagram_bytes: int) -> bytes | None:
    """The versions we speak, for a first packet of another; nothing for what is too small or an answer itself."""
    if initial.version == 0 or datagram_bytes < _SMALLEST_FIRST_DATAGRAM:
        return None
    return encode_quic_version_negotiation(
        source_cid=initial.destination_cid,
        destination_cid=initial.source_cid,
        supported_versions=list(VERSIONS),
    )


def retry(initial: Initial, new_cid: bytes, token: bytes) -> bytes:
    """Asks the sender to prove that it is where it says, by sending `token` back to `new_cid`."""
    return encode_quic_retry(
        version=initial.version,
        source_cid=new_cid,
        destination_cid=initial.source_cid,
        original_destination_cid=initial.destination_cid,
        retry_token=token,
    )
