"""Asking strangers for maps and models: everything they can do wrong, and in bounded time."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Awaitable, Callable

import pytest
import trio
from trio.testing import MockClock

from protocol import limits
from protocol.codec import LENGTH_BYTES, encode
from protocol.errors import Lost, Malformed, PeerUnavailable, SwarmError, TimedOut, TooLarge, Unreachable
from protocol.messages import (
    MAP_PROTOCOL,
    MODEL_PROTOCOL,
    Error,
    FileChunk,
    FileRequest,
    ManifestReply,
    ManifestRequest,
    MapReply,
    MapRequest,
    Message,
    Ping,
)
from protocol.model import Manifest, ManifestFile
from protocol.talk.channel import Channel
from protocol.talk.exchange import exchange_maps, fetch_model
from protocol.transport.base import Handler, Stream
from tests.protocol.network import say_nothing, two_peers
from tests.protocol.samples import manifest
from tests.protocol.test_model import FILES

Answer = Callable[[Channel, Message], Awaitable[None]]
MANY = 100_000.0  # seconds that no honest exchange takes


def answering(answer: Answer) -> Handler:
    """A server that answers each message by `answer`."""

    async def handler(stream: Stream) -> None:
        async with Channel(stream) as channel:
            while (message := await channel.receive()) is not None:
                await answer(channel, message)

    return handler


async def maps(handler: Handler, records: tuple[bytes, ...] = ()) -> tuple[tuple[bytes, ...], float]:
    """One exchange of maps with a server."""
    async with two_peers(MAP_PROTOCOL, handler) as (client, server):
        return await exchange_maps(client, server.peer, server.addrs, records)


async def model(handler: Handler, digest: bytes | None = None) -> tuple[Manifest, dict[str, bytes]]:
    """The sample model from a server."""
    async with two_peers(MODEL_PROTOCOL, handler) as (client, server):
        with trio.fail_after(MANY):
            return await fetch_model(client, server.peer, server.addrs, digest or manifest().digest)


def files(contents: dict[str, bytes], said: Manifest | None = None, piece: int = 3) -> Handler:
    """A server of the sample's manifest and of `contents`, in small pieces."""

    async def answer(channel: Channel, message: Message) -> None:
        if isinstance(message, ManifestRequest):
            await channel.send(ManifestReply((said or manifest()).encode()))
        elif isinstance(message, FileRequest):
            data = contents[message.name]
            for start in range(0, max(len(data), 1), piece):
                await channel.send(FileChunk(data[start : start + piece], start + piece >= len(data)))

    return answering(answer)


async def test_maps_are_exchanged_in_one_round_trip(autojump_clock: MockClock) -> None:
    """Records both ways, and the round-trip time."""
    asked: list[Message] = []

    async def answer(channel: Channel, message: Message) -> None:
        asked.append(message)
        await channel.send(MapReply((b"theirs",)))

    records, rtt_s = await maps(answering(answer), (b"ours",))
    assert records == (b"theirs",)
    assert asked == [MapRequest((b"ours",))]
    assert rtt_s == pytest.approx(0.02, abs=0.001)  # the network's latency is 10 ms


async def test_a_silent_map_server(autojump_clock: MockClock) -> None:
    """TimedOut after the time for control messages."""
    start = trio.current_time()
    with pytest.raises(TimedOut):
        await maps(say_nothing)
    assert trio.current_time() - start == pytest.approx(limits.CONTROL_TIMEOUT_S, abs=0.1)


async def _raw(data: bytes, *, finish: bool = True) -> Handler:
    async def handler(stream: Stream) -> None:
        await stream.send(data)
        if finish:
            await stream.finish()
        await say_nothing(stream)

    return handler


@pytest.mark.parametrize(
    ("data", "error"),
    [
        ((limits.CONTROL_FRAME_BYTES + 1).to_bytes(LENGTH_BYTES, "big"), TooLarge),
        (encode(MapReply((b"x",) * (limits.MAP_RECORDS + 1))), Malformed),
        (encode(MapReply((bytes(limits.RECORD_BYTES + 1),))), TooLarge),
        (encode(Ping(1)), Malformed),
        (encode(MapRequest()), Malformed),
        (encode(MapReply(()))[:-1], Malformed),
        (bytes(100), Malformed),
        (b"", Lost),
        (encode(Error("busy", "later", True)), Lost),
    ],
    ids=["large", "many records", "large record", "ping", "request", "cut", "rubbish", "nothing", "error"],
)
async def test_a_hostile_map_server(autojump_clock: MockClock, data: bytes, error: type[SwarmError]) -> None:
    """Each wrong answer is its own error, at once."""
    with trio.fail_after(1), pytest.raises(error):
        await maps(await _raw(data))


async def test_a_map_server_that_promises_more(autojump_clock: MockClock) -> None:
    """Half a frame holds nobody longer than the time-out."""
    with pytest.raises(TimedOut):
        await maps(await _raw(encode(MapReply((b"x",)))[:-1], finish=False))


async def test_a_map_server_that_resets(autojump_clock: MockClock) -> None:
    """An honest failure."""

    async def reset(stream: Stream) -> None:
        stream.reset()

    with pytest.raises(PeerUnavailable):
        await maps(reset)


async def test_a_peer_that_serves_no_maps(autojump_clock: MockClock) -> None:
    """It does not speak the protocol: Unreachable."""
    async with two_peers(MODEL_PROTOCOL, say_nothing) as (client, server):
        with pytest.raises(Unreachable):
            await exchange_maps(client, server.peer, server.addrs)


@pytest.mark.parametrize("piece", [1, 3, 1000])
async def test_a_model_comes_whole(autojump_clock: MockClock, piece: int) -> None:
    """The manifest and its files, in pieces of any size."""
    assert await model(files(FILES, piece=piece)) == (manifest(), FILES)


@pytest.mark.parametrize(
    ("contents", "error"),
    [
        (FILES | {"tokenizer.json": b"[]"}, Malformed),
        (FILES | {"tokenizer.json": b"{"}, Malformed),
        (FILES | {"tokenizer.json": b""}, Malformed),
        (FILES | {"tokenizer.json": b"{} "}, TooLarge),
        (FILES | {"config.json": FILES["config.json"][::-1]}, Malformed),
    ],
    ids=["other bytes", "shorter", "empty", "longer", "reversed"],
)
async def test_tampered_files(
    autojump_clock: MockClock, contents: dict[str, bytes], error: type[SwarmError]
) -> None:
    """No byte is taken that the digest does not name."""
    with pytest.raises(error):
        await model(files(contents))


async def test_a_manifest_of_another_model(autojump_clock: MockClock) -> None:
    """What does not hash to the digest asked for is refused before any file is asked for."""
    with pytest.raises(Malformed, match="digest"):
        await model(files(FILES), digest=bytes(32))


async def test_a_node_that_does_not_know_the_model(autojump_clock: MockClock) -> None:
    """It says Error, honestly: another peer is asked, this one is not penalised."""

    async def answer(channel: Channel, message: Message) -> None:
        await channel.send(Error("model", "I do not serve this model", True))

    with pytest.raises(Lost, match="do not serve"):
        await model(answering(answer))


def serving(pieces: Callable[[Channel], Awaitable[None]]) -> Handler:
    """A server of the true manifest whose files are whatever `pieces` sends."""

    async def answer(channel: Channel, message: Message) -> None:
        if isinstance(message, ManifestRequest):
            await channel.send(ManifestReply(manifest().encode()))
        else:
            await pieces(channel)

    return answering(answer)


async def test_a_file_that_never_ends(autojump_clock: MockClock) -> None:
    """Too large as soon as it is longer than the manifest says."""

    async def pieces(channel: Channel) -> None:
        while True:
            await channel.send(FileChunk(bytes(limits.FILE_CHUNK_BYTES), False))

    with trio.fail_after(5), pytest.raises(TooLarge):
        await model(serving(pieces))


async def test_regression_empty_pieces_without_end(autojump_clock: MockClock) -> None:
    """A server that sends empty pieces for ever is refused at the first."""

    async def pieces(channel: Channel) -> None:
        while True:
            await channel.send(FileChunk(b"", False))
            await trio.sleep(limits.CONTROL_TIMEOUT_S / 2)

    with pytest.raises(Malformed, match="empty"):
        await model(serving(pieces))


async def test_regression_a_file_that_trickles(autojump_clock: MockClock) -> None:
    """A byte now and then, each in time, does not hold a client: the whole file has a deadline."""

    async def pieces(channel: Channel) -> None:
        while True:
            await channel.send(FileChunk(b"x", False))
            await trio.sleep(limits.CONTROL_TIMEOUT_S * 0.8)

    start = trio.current_time()
    with pytest.raises(TimedOut):
        await model(serving(pieces))
    assert trio.current_time() - start < limits.CONTROL_TIMEOUT_S + 1


async def test_a_server_that_stops_in_the_middle(autojump_clock: MockClock) -> None:
    """Lost if it closes, TimedOut if it says no more."""

    async def close(channel: Channel) -> None:
        await channel.send(FileChunk(b"{", False))
        await channel.stream.finish()

    async def hang(channel: Channel) -> None:
        await channel.send(FileChunk(b"{", False))

    with pytest.raises(Lost):
        await model(serving(close))
    with pytest.raises(TimedOut):
        await model(serving(hang))


async def test_a_large_file_may_take_its_time(autojump_clock: MockClock) -> None:
    """The deadline grows with the size: a slow, steady link is honest."""
    data = bytes(4 * limits.FILE_CHUNK_BYTES)
    said = dataclasses.replace(
        manifest(), files=(ManifestFile("tokenizer.json", len(data), hashlib.sha256(data).digest()),)
    )

    async def answer(channel: Channel, message: Message) -> None:
        if isinstance(message, ManifestRequest):
            await channel.send(ManifestReply(said.encode()))
        else:
            for start in range(0, len(data), limits.FILE_CHUNK_BYTES):
                await trio.sleep(limits.CONTROL_TIMEOUT_S * 0.8)
                chunk = data[start : start + limits.FILE_CHUNK_BYTES]
                await channel.send(FileChunk(chunk, start + len(chunk) == len(data)))

    assert await model(answering(answer), said.digest) == (said, {"tokenizer.json": data})
