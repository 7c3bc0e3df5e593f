"""The endpoint's door under attack: whoever takes many places gives way, and one who means something gets in.

Everybody is on the loopback address here, so attackers and honest peers are of one origin.
"""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress

import pytest
import trio
from aioquic.tls import Epoch

from protocol.errors import Lost, PeerUnavailable
from protocol.transport.limits import (
    AMPLIFICATION,
    DIAL_TIMEOUT_S,
    MAX_CRYPTO_BYTES,
    MAX_HANDSHAKES,
    STRANGER_STREAMS,
    STREAMS_BURST,
    STREAMS_PER_S,
)
from protocol.transport.quic.connection import Connection
from protocol.transport.quic.core import QuicCore
from protocol.transport.quic.endpoint import Endpoint
from protocol.transport.quic.stream import QuicStream
from tests.protocol.transport.quic_support import HOST, Server, dialling, serving
from tests.support.waiting import eventually

GRANTED = b"granted"


async def grant(stream: QuicStream) -> None:
    """A handler that finds a stream of use that asks for something, and waits for those that do not."""
    with suppress(Lost):
        while data := await stream.receive():
            if data == b"please":
                stream.keep()
                await stream.send(GRANTED)


async def is_served(dialler: Endpoint, server: Server) -> QuicStream:
    """An honest peer dials, asks, and is granted what it asks for."""
    return await is_granted(await dialler.dial(HOST, server.port, server.endpoint.peer))


async def is_granted(connection: Connection) -> QuicStream:
    """Over a connection that there is, a new stream asks, and is granted what it asks for."""
    stream = await connection.open_stream()
    await stream.send(b"please")
    with trio.fail_after(2):
        assert await stream.receive() == GRANTED
    return stream


async def still_works(stream: QuicStream) -> None:
    """What was granted goes on."""
    await stream.send(b"please")
    with trio.fail_after(2):
        assert await stream.receive() == GRANTED


class HalfOpen:
    """Begins handshakes, each from a port of its own, proves its address when asked to, and never ends them."""

    def __init__(self, cheat: Endpoint, server: Server, nursery: trio.Nursery) -> None:
        self._cheat = cheat
        self._to = (HOST, server.port)
        self._nursery = nursery

    def begin(self) -> None:
        """One more."""
        sock = socket.socket(type=socket.SOCK_DGRAM)
        sock.bind((HOST, 0))
        sock.setblocking(False)
        core = QuicCore(self._cheat._configuration(is_client=True))
        core.connect(self._to, trio.current_time())
        self._say(core, sock)
        self._nursery.start_soon(self._prove, core, sock)

    async def _prove(self, core: QuicCore, sock: socket.socket) -> None:
        with sock:
            with suppress(OSError), trio.move_on_after(2):
                await trio.lowlevel.wait_readable(sock)
                data, _ = sock.recvfrom(65_535)
                if data[0] & 0xF0 == 0xF0:  # a Retry, and no answer to what we said
                    core.receive_datagram(data, self._to, trio.current_time())
                    self._say(core, sock)
            await trio.sleep_forever()  # or the server would hear that nobody listens

    def _say(self, core: QuicCore, sock: socket.socket) -> None:
        for data, _ in core.datagrams_to_send(trio.current_time()):
            sock.sendto(data, self._to)


@asynccontextmanager
async def half_open(cheat: Endpoint, server: Server) -> AsyncIterator[HalfOpen]:
    """Whoever begins handshakes and does not end them; what waits for a socket ends before the socket does."""
    async with trio.open_nursery() as nursery:
        yield HalfOpen(cheat, server, nursery)
        nursery.cancel_scope.cancel()


@pytest.mark.net
async def test_unfinished_handshakes_do_not_lock_the_door() -> None:
    """With more of them going on than there are places, begun faster than they may be, an honest peer gets in."""
    async with (
        serving(grant) as server,
        dialling() as cheat,
        dialling() as honest,
        half_open(cheat, server) as flood,
        trio.open_nursery() as nursery,
    ):

        async def keep_beginning() -> None:
            while True:
                for _ in range(2):
                    flood.begin()
                await trio.sleep(0.02)

        nursery.start_soon(keep_beginning)
        shaking = server.endpoint._shaking
        await eventually(lambda: len(shaking) > MAX_HANDSHAKES / 2, within_s=10)
        served = 0
        for _ in range(5):
            with suppress(PeerUnavailable), trio.fail_after(DIAL_TIMEOUT_S + 2):
                await is_served(honest, server)
                served += 1
                for connection in honest.connections:
                    connection.close()
        assert served >= 4
        assert len(shaking) <= MAX_HANDSHAKES
        nursery.cancel_scope.cancel()


async def test_the_oldest_unfinished_handshake_gives_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """There are never more of them than may be, and whoever is the last to begin gets in."""
    monkeypatch.setattr("protocol.transport.quic.endpoint.MAX_HANDSHAKES", 4)
    async with (
        serving(grant) as server,
        dialling() as cheat,
        dialling() as honest,
        half_open(cheat, server) as flood,
    ):
        for number in range(12):
            flood.begin()
            await eventually(
                lambda number=number: len(server.endpoint._shaking) == min(4, number + 1)  # type: ignore[misc]
            )
        await is_served(honest, server)


@asynccontextmanager
async def crowd(server: Server, size: int, streams: int = 1) -> AsyncIterator[list[Connection]]:
    """Connections of as many identities, each with silent streams."""
    async with AsyncExitStack() as stack:
        connections = []
        for _ in range(size):
            dialler = await stack.enter_async_context(dialling())
            connection = await dialler.dial(HOST, server.port, server.endpoint.peer)
            for _ in range(streams):
                with suppress(Lost):
                    await (await connection.open_stream()).send(b"x")
            connections.append(connection)
        yield connections


async def test_silent_connections_do_not_lock_the_door() -> None:
    """Twice as many as there may be come and say something useless; who was granted something before them goes on,
    and who comes after them is granted what it asks for.
    """
    async with serving(grant) as server, dialling() as before, dialling() as after:
        server.endpoint.max_connections = 8
        stream = await is_served(before, server)
        async with crowd(server, 16) as cheats:
            await eventually(lambda: server.endpoint.statistics()["connections"] <= 8)
            newer = await is_served(after, server)
            await still_works(stream)
            async with crowd(server, 8):
                await still_works(newer)
                await still_works(stream)
            assert sum(cheat.error is None for cheat in cheats) <= 7


async def test_useful_connections_leave_half_of_the_places() -> None:
    """Though all that came were granted something, a newcomer finds a place and has time to ask for more."""
    async with serving(grant) as server, AsyncExitStack() as stack:
        server.endpoint.max_connections = 8
        for _ in range(12):
            await is_served(await stack.enter_async_context(dialling()), server)
        newcomer = await stack.enter_async_context(dialling())
        connection = await newcomer.dial(HOST, server.port, server.endpoint.peer)
        async with crowd(server, 3):
            assert connection.error is None
            await is_granted(connection)


async def test_silent_streams_give_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many streams say nothing that is of use, no more than so many are kept, and one that asks is served."""
    monkeypatch.setattr("protocol.transport.quic.endpoint.MAX_UNUSED_STREAMS", 20)
    async with serving(grant) as server, dialling() as honest:
        connection = await honest.dial(HOST, server.port, server.endpoint.peer)
        stream = await is_granted(connection)
        async with crowd(server, 4, STRANGER_STREAMS):
            await eventually(lambda: len(server.endpoint._unused_streams) == 20)
            await is_granted(connection)
            await still_works(stream)


@pytest.mark.slow
async def test_streams_opened_and_reset_are_counted() -> None:
    """Opening and resetting streams as fast as it goes gets a peer no more of them than the rate allows."""
    served = 0

    async def count(stream: QuicStream) -> None:
        nonlocal served
        served += 1
        with suppress(Lost):
            await stream.receive()
        stream.reset()

    async with serving(count) as server, dialling() as dialler:
        connection = await dialler.dial(HOST, server.port, server.endpoint.peer)
        began = trio.current_time()
        with trio.move_on_after(2):
            while True:
                stream = await connection.open_stream()
                await stream.send(b"x")
                stream.reset()
        elapsed = trio.current_time() - began
        assert STREAMS_BURST < served <= STRANGER_STREAMS + STREAMS_BURST + STREAMS_PER_S * elapsed


async def test_who_makes_others_hold_the_most_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """When unread bytes are too many in all, the connection with the most ends, and one with a few goes on."""
    monkeypatch.setattr("protocol.transport.quic.endpoint.MAX_HELD_BYTES", 300_000)
    monkeypatch.setattr("protocol.transport.quic.endpoint.COUNT_HELD_EVERY", 10_000)
    reading = trio.Event()

    async def ignore(stream: QuicStream) -> None:
        with suppress(Lost):
            if await stream.receive(1) == b"m":
                await reading.wait()
            await grant(stream)

    async with serving(ignore) as server, dialling() as honest:
        modest = await honest.dial(HOST, server.port, server.endpoint.peer)
        stream = await modest.open_stream()
        await stream.send(b"m" + bytes(10_000))
        async with AsyncExitStack() as stack:
            cheats = []
            for _ in range(4):
                dialler = await stack.enter_async_context(dialling())
                cheats.append(await dialler.dial(HOST, server.port, server.endpoint.peer))
                with suppress(Lost):
                    await (await cheats[-1].open_stream()).send(b"m" + bytes(120_000))
            await eventually(lambda: any(cheat.error is not None for cheat in cheats))
            held = [connection.held_bytes for connection in server.endpoint.connections]
            assert sum(held) <= 310_000
            assert modest.error is None


async def test_who_does_not_take_what_it_asked_for_is_counted_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes on their way to a peer that acknowledges nothing count as held for it."""
    monkeypatch.setattr("protocol.transport.quic.endpoint.MAX_HELD_BYTES", 200_000)
    monkeypatch.setattr("protocol.transport.quic.endpoint.COUNT_HELD_EVERY", 10_000)

    async def flood(stream: QuicStream) -> None:
        with suppress(Lost):
            while True:
                await stream.send(bytes(20_000))

    async with serving(flood) as server, dialling() as dialler:
        connection = await dialler.dial(HOST, server.port, server.endpoint.peer)
        await (await connection.open_stream()).send(b"x")
        with trio.fail_after(5):
            await (await server.first()).closed.wait()


async def test_goodbyes_do_not_amplify() -> None:
    """Said again, to whoever sends from anywhere, a goodbye is at most three times what provoked it, a few times."""
    async with serving(grant) as server, dialling() as dialler:
        connection = await dialler.dial(HOST, server.port, server.endpoint.peer)
        closed = await server.first()
        cid = next(iter(closed.cids))
        closed.close("x" * 200)
        await connection.closed.wait()
        with socket.socket(type=socket.SOCK_DGRAM) as stranger:
            stranger.setblocking(False)
            stranger.bind((HOST, 0))
            asked = answered = 0
            for size in (9, 20, 30, 100, 300) * 4:
                data = b"\x40" + cid + os.urandom(size - 9)
                stranger.sendto(data, (HOST, server.port))
                with trio.move_on_after(0.05):
                    await trio.lowlevel.wait_readable(stranger)
                    answer = stranger.recv(65_535)
                    assert len(answer) <= AMPLIFICATION * size
                    answered += 1
                asked += size
            assert 0 < answered <= 5


@pytest.mark.parametrize("start", [MAX_CRYPTO_BYTES, 0])
async def test_nobody_makes_a_long_handshake_be_held(start: int) -> None:
    """A byte of the handshake far ahead of the others, or a message of TLS that does not end, ends the connection."""
    async with serving(grant) as server, dialling() as dialler:
        connection = await dialler.dial(HOST, server.port, server.endpoint.peer)
        other = await server.first()
        crypto = connection._core._crypto_streams[Epoch.ONE_RTT].sender
        crypto.write(b"\x04\xff\xff\xff" + bytes(2 * MAX_CRYPTO_BYTES))
        if start:
            crypto._pending.subtract(0, start)
        connection.flush()
        with trio.fail_after(3):
            await other.closed.wait()
        assert len(other._core.tls._receive_buffer) <= MAX_CRYPTO_BYTES
