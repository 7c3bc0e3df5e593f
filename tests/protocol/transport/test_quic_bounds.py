"""What the QUIC endpoint bears: rubbish, bugs of its own, peers that want too much."""

from __future__ import annotations

import os
import random
import socket
from contextlib import suppress

import pytest
import trio

from protocol.errors import Lost, TimedOut
from protocol.transport.allowance import Allowance
from protocol.transport.limits import (
    MAX_CONNECTIONS_PER_PEER,
    MAX_INCOMING_STREAMS,
    STRANGER_STREAMS,
)
from protocol.transport.quic.stream import QuicStream
from protocol.transport.quic.udp import Addr
from tests.protocol.transport.quic_support import (
    HOST,
    dialling,
    round_trip,
    serving,
)
from tests.support.waiting import eventually


async def test_rubbish_does_no_harm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Random, truncated, replayed and changed datagrams leave connections and tables as they were."""
    rng = random.Random(11)
    async with serving() as server, dialling() as dialler:
        connection = await dialler.dial(HOST, server.port, server.endpoint.peer)
        seen: list[bytes] = []
        send = connection._port.send

        def watched(data: bytes, addr: Addr) -> int:
            seen.append(bytes(data))
            return send(data, addr)

        monkeypatch.setattr(connection._port, "send", watched)
        await round_trip(connection, os.urandom(20_000))
        async with dialling() as another:
            first = another._start_dial(HOST, server.port, None)
            await first.wait_ready()
        with socket.socket(type=socket.SOCK_DGRAM) as stranger:
            for number in range(2000):
                data = bytearray(rng.choice(seen) if number % 2 else rng.randbytes(rng.randrange(1, 1500)))
                if number % 4 == 1:
                    data = data[: rng.randrange(1, len(data) + 1)]
                elif number % 4 == 3:
                    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
                elif number % 4 == 2:
                    data[0] |= 0xC0  # a long header
                    if len(data) > 5 and number % 8 == 2:
                        data[1:5] = b"\x00\x00\x00\x01"
                        data += bytes(max(0, 1200 - len(data)))
                stranger.sendto(data, (HOST, server.port))
                if number % 50 == 0:
                    await trio.lowlevel.checkpoint()
            await round_trip(connection, os.urandom(20_000))
        async with dialling() as late:
            await round_trip(await late.dial(HOST, server.port, server.endpoint.peer), b"welcome")
        await eventually(lambda: server.endpoint.statistics()["connections"] == 1)


async def test_single_bytes_are_not_kept_one_by_one() -> None:
    """A peer that sends a byte at a time to a slow reader costs bytes, not objects."""
    async with dialling() as dialler:
        stream = QuicStream(dialler._start_dial(HOST, 9, None)._streams, 0)
        for number in range(100_000):
            stream.data_received(bytes((number % 256,)), fin=False)
        assert len(stream._chunks) < 10
        data = b""
        while len(data) < 100_000:
            data += await stream.receive(70_000)
        assert data == bytes(range(256)) * 390 + bytes(range(160))


async def test_a_stream_full_of_gaps_ends_the_connection() -> None:
    """Every second byte of a stream is no loss but an attack on those who sort the pieces."""
    async with serving() as server, dialling() as dialler:
        connection = await dialler.dial(HOST, server.port, server.endpoint.peer)
        stream = await connection.open_stream()
        await stream.send(b"x")
        sender = connection._core._streams[stream.stream_id].sender
        sender.write(bytes(10_000))
        for start in range(1, 10_000, 2):
            sender._pending.subtract(start, start + 1)
        connection.flush()
        assert await stream.receive() == b"x"
        with trio.fail_after(5), pytest.raises(Lost, match="gaps"):
            await stream.receive()


async def test_a_bug_inside_ends_one_connection_only(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """If aioquic raises over a packet, that connection is lost and logged, and the endpoint lives."""
    async with serving() as server, dialling() as one, dialling() as two:
        good = await one.dial(HOST, server.port, server.endpoint.peer)
        bad = await two.dial(HOST, server.port, server.endpoint.peer)
        await eventually(lambda: len(server.connections) == 2)

        def broken(*_: object) -> None:
            raise AssertionError("deliberate")

        monkeypatch.setattr(server.connections[1]._core, "receive_datagram", broken)
        stream = await bad.open_stream()
        await stream.send(b"x")
        with trio.fail_after(2):
            await server.connections[1].closed.wait()
        assert "deliberate" in caplog.text
        await round_trip(good, b"unharmed")


async def test_one_peer_has_a_few_connections_at_most() -> None:
    """The oldest of too many connections of one peer gives way."""
    async with serving() as server, dialling() as dialler:
        connections = [
            await dialler.dial(HOST, server.port, server.endpoint.peer)
            for _ in range(MAX_CONNECTIONS_PER_PEER + 1)
        ]
        with trio.fail_after(1):
            await connections[0].closed.wait()
        await round_trip(connections[-1], b"newest")


async def test_too_many_streams_wait() -> None:
    """The peer's limit on open streams holds an opener up until one ends, or until it is allowed more."""

    async def hold(stream: QuicStream) -> None:
        if await stream.receive() == b"of use":
            stream.widen()
            await stream.send(b"granted")
        await stream.receive()
        await stream.aclose()

    async with serving(hold) as server, dialling() as dialler:
        connection = await dialler.dial(HOST, server.port, server.endpoint.peer)
        streams = [await connection.open_stream() for _ in range(STRANGER_STREAMS)]
        with trio.move_on_after(0.1) as scope:
            await connection.open_stream()
        assert scope.cancelled_caught
        await streams[0].send(b"of use")
        assert await streams[0].receive() == b"granted"
        with trio.fail_after(2):
            streams += [await connection.open_stream() for _ in range(STRANGER_STREAMS, MAX_INCOMING_STREAMS)]
        with trio.move_on_after(0.1) as scope:
            await connection.open_stream()
        assert scope.cancelled_caught
        for stream in streams:
            await stream.send(b"x")
            await stream.aclose()
        with trio.fail_after(2):
            await connection.open_stream()


async def test_many_handshakes_at_once_demand_proof_of_address() -> None:
    """Beyond a few handshakes a dialler is asked to prove its address, and gets in with the proof."""
    async with serving() as server, dialling() as dialler, dialling() as cheat:
        spent = server.endpoint._door._unproven = Allowance(per_s=0.0, burst=1)
        spent.spend("", trio.current_time(), 1.0)
        connection = await dialler.dial(HOST, server.port, server.endpoint.peer)
        assert connection._core._retry_count == 1
        await round_trip(connection, b"proven")
        server.endpoint._tokens._aead = type(server.endpoint._tokens._aead)(bytes(16))
        cheater = cheat._start_dial(HOST, server.port, server.endpoint.peer)
        cheater._core._peer_token = connection._core._peer_token
        with trio.fail_after(2):
            # a token that is not ours is as good as none: it is asked, and proves itself
            await cheater.wait_ready()


@pytest.mark.net
async def test_a_crowd_gets_in_at_once() -> None:
    """More dials at the same moment than may go unproven all succeed."""
    async with serving() as server, trio.open_nursery() as nursery:

        async def one() -> None:
            async with dialling() as dialler:
                await round_trip(await dialler.dial(HOST, server.port, server.endpoint.peer), b"x")

        with trio.fail_after(20):
            async with trio.open_nursery() as crowd:
                for _ in range(60):
                    crowd.start_soon(one)
        assert len(server.connections) == 60
        nursery.cancel_scope.cancel()


async def test_an_unused_connection_gives_way() -> None:
    """With all connections taken, one without a stream of use ends for a newcomer, a silent stream or not."""

    async def keep(stream: QuicStream) -> None:
        with suppress(Lost):
            if await stream.receive() == b"of use":
                stream.keep()
                await stream.send(b"granted")
            await stream.receive()

    async with (
        serving(keep) as server,
        dialling() as one,
        dialling() as two,
        dialling() as three,
        dialling() as four,
    ):
        server.endpoint.max_connections = 2
        used = await one.dial(HOST, server.port, server.endpoint.peer)
        stream = await used.open_stream()
        await stream.send(b"of use")
        assert await stream.receive() == b"granted"
        unused = await two.dial(HOST, server.port, server.endpoint.peer)
        silent = await unused.open_stream()
        await silent.send(b"nothing")
        await eventually(lambda: server.endpoint.statistics()["streams"] == 2)
        with trio.fail_after(1):
            newer = await three.dial(HOST, server.port, server.endpoint.peer)
            await unused.closed.wait()
            await four.dial(HOST, server.port, server.endpoint.peer)
            await newer.closed.wait()
        assert used.error is None


async def test_a_handshake_that_stalls_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A dialler that goes silent in mid-handshake holds its slot for a bounded time."""
    monkeypatch.setattr("protocol.transport.quic.connection.HANDSHAKE_TIMEOUT_S", 0.2)
    async with serving() as server, dialling() as dialler:
        connection = dialler._start_dial(HOST, server.port, server.endpoint.peer)
        dialler._routes.clear()  # it hears nothing any more
        await eventually(lambda: server.endpoint.statistics()["connections"] == 1)
        await eventually(lambda: server.endpoint.statistics()["connections"] == 0, within_s=2)
        with trio.fail_after(2), pytest.raises(TimedOut):
            await connection.wait_ready()
