"""Short request-and-answer conversations with one peer: its map of the swarm, its model files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import trio

from protocol import limits
from protocol.book import RecordBook
from protocol.errors import Lost, Malformed, RemoteProtocolError, TooLarge
from protocol.messages import (
    DIAL_PROTOCOL,
    MAP_PROTOCOL,
    MODEL_PROTOCOL,
    DialReply,
    DialRequest,
    FileChunk,
    FileRequest,
    ManifestReply,
    ManifestRequest,
    MapReply,
    MapRequest,
)
from protocol.model import Manifest, check_files, parse_manifest
from protocol.records import Record, open_record
from protocol.strangers import Source
from protocol.talk.channel import Channel
from protocol.transport.addresses import parse_address
from protocol.transport.base import PeerAddrs, Transport
from protocol.transport.origin import origin_of

# Records checked before other tasks have their turn: 32 signatures take about 5 ms.
CHECKED_AT_ONCE: Final = 32


async def exchange_maps(
    transport: Transport, peer: str, addrs: Sequence[str], records: tuple[bytes, ...] = ()
) -> tuple[tuple[bytes, ...], float]:
    """Give `records` to a peer and take those it holds: (unchecked records, round-trip time in seconds).

    Raises: PeerUnavailable, if it cannot be reached or does not answer in time; RemoteProtocolError.
    """
    async with await _open(transport, peer, addrs, MAP_PROTOCOL) as channel:
        asked = trio.current_time()
        await channel.send(MapRequest(records))
        reply = await channel.expect(MapReply, limits.CONTROL_TIMEOUT_S)
        return reply.records, trio.current_time() - asked


async def ask_dial(transport: Transport, node: PeerAddrs, request: DialRequest) -> DialReply:
    """Have a node dial back. Raises: PeerUnavailable; RemoteProtocolError."""
    async with await _open(transport, node.peer, node.addrs, DIAL_PROTOCOL) as channel:
        await channel.send(request)
        return await channel.expect(DialReply, limits.CONTROL_TIMEOUT_S)


@dataclass(frozen=True, slots=True)
class Meeting:
    """A peer that answered under its own id, and what that showed."""

    peer: str
    places: tuple[str, ...]  # where it is; also the one name under which it was dialled
    origin: str
    records: tuple[bytes, ...]  # its map, unchecked
    rtt_s: float

    @property
    def source(self) -> Source:
        """Of its records."""
        return Source(self.peer, self.origin, asked=True)

    def issued(self) -> float | None:
        """When the peer's own record, which comes first, was issued, whatever the time; None if it is not there."""
        try:
            own = open_record(self.records[0]) if self.records else None
        except RemoteProtocolError:
            return None
        return own.announcement.issued if own is not None and own.peer == self.peer else None


async def meet(transport: Transport, peer: PeerAddrs, records: tuple[bytes, ...] = ()) -> Meeting:
    """Exchange maps with a peer, and note where it is. Raises: what `exchange_maps` raises."""
    dialled = transport.place_of(peer.peer) is None
    found, rtt_s = await exchange_maps(transport, peer.peer, peer.addrs, records)
    place = transport.place_of(peer.peer)
    if place is None:
        raise Lost(f"the connection to {peer.peer} has ended")
    places = (place, *peer.addrs) if dialled and len(peer.addrs) == 1 else (place,)
    return Meeting(peer.peer, places, origin_of(parse_address(place).host), found, rtt_s)


async def take_records(
    book: RecordBook,
    records: Sequence[bytes],
    source: Source,
    clock: Callable[[], float],
    most_refused: int = limits.MAP_RECORDS,
) -> list[Record]:
    """Check records that `source` handed over and keep what is new; the new ones. Other tasks run in between.

    Raises: Malformed, if more than `most_refused` of them are no records.
    """
    fresh: list[Record] = []
    refused = 0
    for start in range(0, len(records), CHECKED_AT_ONCE):
        new, bad = book.merge(records[start : start + CHECKED_AT_ONCE], clock(), source)
        fresh += new
        refused += bad
        if refused > most_refused:
            raise Malformed(f"{refused} of {len(records)} records do not hold")
        await trio.lowlevel.checkpoint()
    return fresh


async def fetch_model(
    transport: Transport, peer: str, addrs: Sequence[str], digest: bytes
) -> tuple[Manifest, dict[str, bytes]]:
    """The manifest of a model and the files it names, all checked against `digest`.

    Raises: PeerUnavailable; RemoteProtocolError, if what came is not what the digest names.
    """
    async with await _open(transport, peer, addrs, MODEL_PROTOCOL) as channel:
        await channel.send(ManifestRequest(digest))
        reply = await channel.expect(ManifestReply, limits.CONTROL_TIMEOUT_S)
        manifest = parse_manifest(reply.manifest, digest)
        contents = {file.name: await _fetch_file(channel, file.name, file.size) for file in manifest.files}
    check_files(manifest, contents)
    return manifest, contents


async def _fetch_file(channel: Channel, name: str, size: int) -> bytes:
    await channel.send(FileRequest(name))
    data = bytearray()
    deadline = trio.current_time() + limits.CONTROL_TIMEOUT_S + size / limits.FILE_BYTES_PER_S
    while True:
        remaining_s = max(0.0, deadline - trio.current_time())
        chunk = await channel.expect(FileChunk, min(remaining_s, limits.CONTROL_TIMEOUT_S))
        data += chunk.data
        if len(data) > size:
            raise TooLarge(f"{name} is longer than the manifest says")
        if chunk.last:
            return bytes(data)
        if not chunk.data:
            raise Malformed(f"an empty piece in the middle of {name}")


async def _open(transport: Transport, peer: str, addrs: Sequence[str], protocol: str) -> Channel:
    stream = await transport.open_stream(peer, addrs, protocol)
    return Channel(stream, frame_limit=limits.CONTROL_FRAME_BYTES)
