"""The QUIC endpoint: loses nothing, leaks nothing, notices deaths, finds what its path carries."""

from __future__ import annotations

import errno
import hashlib
import os
import random
import socket
import subprocess
import sys
from functools import partial

import pytest
import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from trio.testing import wait_all_tasks_blocked

from protocol.errors import LocalProtocolError, Lost, Unreachable
from protocol.transport.limits import (
    CONNECTION_WINDOW,
    STRANGER_WINDOW,
    STREAM_WINDOW,
)
from protocol.transport.peer_id import peer_id_of
from protocol.transport.quic.stream import QuicStream
from protocol.transport.quic.udp import Addr, SendError
from tests.protocol.transport.quic_support import (
    HOST,
    dialling,
    round_trip,
    serving,
    through_proxy,
)
from tests.support.waiting import eventually

MIB = 1024 * 1024


# --- data


@pytest.mark.net
async def test_a_slow_reader_loses_nothing() -> None:
    """64 MiB to a reader that stops and goes arrive whole, and never more than the windows wait for it."""
    size = 64 * MIB
    sent, received = hashlib.sha256(), hashlib.sha256()
    done = trio.Event()
    most_unread = 0

    async def slow(stream: QuicStream) -> None:
        nonlocal most_unread
        total = 0
        while data := await stream.receive():
            received.update(data)
            total += len(data)
            most_unread = max(most_unread, len(data))
            if random.Random(total).random() < 0.05:
                await trio.sleep(0.01)
        done.set()

    async with serving(slow) as server, dialling() as dialler:
        connection = await dialler.dial(HOST, server.port, server.endpoint.peer)
        stream = await connection.open_stream()
        rng = random.Random(1)
        with trio.fail_after(60):
            for _ in range(size // MIB):
                piece = rng.randbytes(MIB)
                sent.update(piece)
                await stream.send(piece)
            await stream.finish()
            await done.wait()
    assert received.digest() == sent.digest()
    assert most_unread <= STREAM_WINDOW


async def test_credit_is_given_for_reading_only() -> None:
    """However much a peer wants to send on many streams, unread bytes stay within the connection's window.

    It is small until the peer is allowed more.
    """
    reading = trio.Event()
    streams: list[QuicStream] = []

    async def hold(stream: QuicStream) -> None:
        streams.append(stream)
        await reading.wait()

    async with serving(hold) as server, dialling() as dialler:
        connection = await dialler.dial(HOST, server.port, server.endpoint.peer)
        async with trio.open_nursery() as nursery:
            for _ in range(8):
                nursery.start_soon((await connection.open_stream()).send, bytes(4 * MIB))
            core = (await server.first())._core
            await eventually(lambda: core._local_max_data.used == STRANGER_WINDOW)
            with trio.move_on_after(0.3):
                await trio.sleep_forever()
            assert core.held_bytes == STRANGER_WINDOW
            streams[0].widen()
            await eventually(lambda: core._local_max_data.used == CONNECTION_WINDOW)
            with trio.move_on_after(0.3):
                await trio.sleep_forever()
            assert core._local_max_data.used == CONNECTION_WINDOW
            assert all(stream._arrived <= STREAM_WINDOW for stream in streams)
            nursery.cancel_scope.cancel()


async def test_unread_bytes_of_ended_streams_are_credited() -> None:
    """Streams that end with bytes nobody read do not eat up the connection's window."""

    async def ignore(stream: QuicStream) -> None:
        await stream.receive(1)
        stream.reset()

    async with serving(ignore) as server, dialling() as dialler:
        connection = await dialler.dial(HOST, server.port, server.endpoint.peer)
        with trio.fail_after(20):
            for _ in range(3 * CONNECTION_WINDOW // (MIB // 2)):
                stream = await connection.open_stream()
                with pytest.raises(Lost):
                    await stream.send(bytes(4 * MIB))
                stream.reset()


@pytest.mark.net
async def test_three_percent_loss_costs_time_only() -> None:
    """Every stream comes back whole over a path that loses packets both ways."""
    async with serving() as server, through_proxy(server.port) as proxy, dialling() as dialler:
        proxy.loss = 0.03
        with trio.fail_after(60):
            connection = await dialler.dial(HOST, proxy.port, server.endpoint.peer)
            async with trio.open_nursery() as nursery:
                for seed in range(8):
                    nursery.start_soon(round_trip, connection, random.Random(seed).randbytes(200_000))
        assert proxy.dropped > 0


async def test_a_reader_and_a_writer_but_not_two_of_a_kind() -> None:
    """A second task that receives at the same time is told so."""
    async with serving() as server, dialling() as dialler:
        connection = await dialler.dial(HOST, server.port, server.endpoint.peer)
        stream = await connection.open_stream()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream.receive)
            await wait_all_tasks_blocked()
            with pytest.raises(LocalProtocolError):
                await stream.receive()
            nursery.cancel_scope.cancel()


# --- nothing leaks


@pytest.mark.slow
async def test_a_thousand_streams_leave_nothing_behind() -> None:
    """Closed, reset by either side, finished: no table of ours or aioquic's keeps any of them."""

    async def handler(stream: QuicStream) -> None:
        try:
            kind = await stream.receive()
            if kind == b"reset me":
                stream.reset()
            elif kind == b"echo":
                await stream.send(kind)
                await stream.aclose()
            else:
                await stream.receive()
        except Lost:
            stream.reset()
        finally:
            stream.close_soon()

    async with serving(handler) as server, dialling() as dialler:
        connection = await dialler.dial(HOST, server.port, server.endpoint.peer)
        for number in range(1000):
            stream = await connection.open_stream()
            with trio.fail_after(5):
                if number % 3 == 0:
                    await stream.send(b"reset me")
                    with pytest.raises(Lost):
                        await stream.receive()
                elif number % 3 == 1:
                    await stream.send(b"echo")
                    assert await stream.receive() == b"echo"
                else:
                    await stream.send(b"to be reset")
                    stream.reset()
            await stream.aclose()
        other = await server.first()
        for end in (connection, other):
            await eventually(lambda end=end: end.open_streams == 0)  # type: ignore[misc]
            await eventually(lambda end=end: len(end._core._streams) == 0)  # type: ignore[misc]
            assert end._streams._ending == {}
            assert end._core._streams_queue == []
        assert len(dialler._timers) < 100


@pytest.mark.net
async def test_three_hundred_connections_one_after_another() -> None:
    """No count of past connections stops the next, and the tables are empty in the end."""
    async with serving() as server:
        for _ in range(300):
            async with dialling() as dialler:
                with trio.fail_after(5):
                    connection = await dialler.dial(HOST, server.port, server.endpoint.peer)
                    await round_trip(connection, b"x")
        await eventually(lambda: server.endpoint.statistics()["connections"] == 0)
        assert server.endpoint.statistics() == {"connections": 0, "routes": 0, "peers": 0, "streams": 0}


async def test_a_failed_dial_leaves_nothing_behind() -> None:
    """Neither refused nor cancelled dials stay in a table."""
    stranger = peer_id_of(Ed25519PrivateKey.generate().public_key())
    with socket.socket(type=socket.SOCK_DGRAM) as silent:
        silent.bind((HOST, 0))
        async with dialling() as dialler:
            with pytest.raises(Unreachable):
                await dialler.dial(HOST, 9, stranger)
            with trio.move_on_after(0.1):
                await dialler.dial(HOST, silent.getsockname()[1], stranger)
            assert dialler.statistics() == {"connections": 0, "routes": 0, "peers": 0, "streams": 0}


# --- deaths


async def test_leaving_is_noticed_at_once() -> None:
    """A connection that is closed says so, and its streams are Lost within milliseconds."""
    async with serving() as server, dialling() as dialler:
        connection = await dialler.dial(HOST, server.port, server.endpoint.peer)
        stream = await connection.open_stream()
        await stream.send(b"x")
        assert await stream.receive() == b"x"
        (await server.first()).close("bye")
        with trio.fail_after(0.5), pytest.raises(Lost, match="bye"):
            await stream.receive()


async def test_a_lost_goodbye_is_said_again() -> None:
    """A peer that missed the goodbye hears it when it next sends."""
    async with serving() as server, through_proxy(server.port) as proxy, dialling() as dialler:
        connection = await dialler.dial(HOST, proxy.port, server.endpoint.peer)
        stream = await connection.open_stream()
        await stream.send(b"x")
        assert await stream.receive() == b"x"
        proxy.silent = True
        (await server.first()).close("bye")
        await eventually(lambda: proxy.dropped > 0)
        proxy.silent = False
        with trio.fail_after(2), pytest.raises(Lost, match="bye"):
            await stream.receive()


@pytest.mark.slow
async def test_silence_is_noticed_within_the_idle_timeout() -> None:
    """When every packet vanishes, both ends give up, and not much later than the time-out says."""
    async with (
        serving(idle_timeout_s=1.0) as server,
        through_proxy(server.port) as proxy,
        dialling(idle_timeout_s=1.0) as dialler,
    ):
        connection = await dialler.dial(HOST, proxy.port, server.endpoint.peer)
        stream = await connection.open_stream()
        await stream.send(b"x")
        assert await stream.receive() == b"x"
        proxy.silent = True
        with trio.fail_after(2.5), pytest.raises(Lost):
            await stream.receive()
        with trio.fail_after(2.5):
            await (await server.first()).closed.wait()


@pytest.mark.slow
async def test_an_idle_connection_is_kept_alive() -> None:
    """Keep-alives hold a connection over several idle time-outs."""
    async with serving(idle_timeout_s=0.6) as server, dialling(idle_timeout_s=0.6) as dialler:
        connection = await dialler.dial(HOST, server.port, server.endpoint.peer)
        with trio.move_on_after(2.0):
            await connection.closed.wait()
        assert connection.error is None
        await round_trip(connection, b"still there")


CHILD = """
import sys, trio
from protocol.transport.quic.endpoint import open_endpoint
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

async def main():
    async with open_endpoint(Ed25519PrivateKey.generate()) as endpoint, trio.open_nursery() as nursery:
        async def accept(connection):
            while True:
                stream = await connection.accept_stream()
                await stream.send(await stream.receive())
        endpoint.on_connection = lambda connection: nursery.start_soon(accept, connection)
        endpoint.accepting = True
        print(endpoint.bind("127.0.0.1", 0).port, endpoint.peer, flush=True)
        await trio.sleep_forever()

trio.run(main)
"""


@pytest.mark.net
async def test_a_killed_process_is_noticed_fast() -> None:
    """kill -9 on a living host: a stream that waits is Lost in well below a second, a dial is refused."""
    async with trio.open_nursery() as nursery, dialling() as dialler:
        start = partial(trio.run_process, stdout=subprocess.PIPE, check=False)
        child: trio.Process = await nursery.start(start, [sys.executable, "-c", CHILD])
        assert child.stdout is not None
        line = b""
        while not line.endswith(b"\n"):
            line += await child.stdout.receive_some()
        port, peer = line.decode().split()
        connection = await dialler.dial(HOST, int(port), peer)
        stream = await connection.open_stream()
        await stream.send(b"x")
        assert await stream.receive() == b"x"
        child.kill()
        with trio.fail_after(1.0), pytest.raises(Lost, match="nobody listens"):
            await stream.receive()
        with trio.fail_after(0.5), pytest.raises(Unreachable, match="nobody listens"):
            await dialler.dial(HOST, int(port), peer)


async def test_one_refusal_is_no_death() -> None:
    """A report that nobody listens, as anybody might forge it, provokes a question, and the answer clears it."""
    async with serving() as server, dialling() as dialler:
        connection = await dialler.dial(HOST, server.port, server.endpoint.peer)
        for _ in range(20):
            connection.send_error(SendError(111, (HOST, server.port), 0), trio.current_time())
            await trio.sleep(0.02)
        assert connection.error is None
        await round_trip(connection, b"alive")


# --- datagram sizes


async def test_loopback_is_found_to_carry_large_datagrams() -> None:
    """Both ends reach 16,000 bytes by probing."""
    async with serving() as server, dialling() as dialler:
        connection = await dialler.dial(HOST, server.port, server.endpoint.peer)
        await eventually(lambda: connection.datagram_size == 16_000)
        other = await server.first()
        await eventually(lambda: other.datagram_size == 16_000)
        await round_trip(connection, os.urandom(300_000))


@pytest.mark.parametrize(("largest", "expected"), [(1300, 1200), (1500, 1452), (9000, 8900)])
async def test_a_path_that_swallows_large_datagrams(largest: int, expected: int) -> None:
    """Probing stops below what the path drops, and the connection works meanwhile and after."""
    async with serving() as server, through_proxy(server.port) as proxy, dialling() as dialler:
        proxy.largest = largest
        with trio.fail_after(10):
            connection = await dialler.dial(HOST, proxy.port, server.endpoint.peer)
            await round_trip(connection, os.urandom(100_000))
            await eventually(lambda: connection._mtu.next_probe(trio.current_time()) is None)
            await eventually(lambda: connection.datagram_size == expected)
            await round_trip(connection, os.urandom(100_000))


async def test_a_path_that_shrinks_is_survived() -> None:
    """When large datagrams stop passing, the connection falls back and goes on."""
    async with serving() as server, through_proxy(server.port) as proxy, dialling() as dialler:
        connection = await dialler.dial(HOST, proxy.port, server.endpoint.peer)
        await eventually(lambda: connection.datagram_size == 16_000)
        proxy.largest = 1300
        with trio.fail_after(15):
            await round_trip(connection, os.urandom(50_000))
        assert connection.datagram_size == 1200


async def test_emsgsize_is_survived(monkeypatch: pytest.MonkeyPatch) -> None:
    """When the system refuses a size that once passed, the same bytes go in smaller datagrams."""
    async with serving() as server, dialling() as dialler:
        connection = await dialler.dial(HOST, server.port, server.endpoint.peer)
        await eventually(lambda: connection.datagram_size == 16_000)
        send = connection._port.send

        def narrow(data: bytes, addr: Addr) -> int:
            return errno.EMSGSIZE if len(data) > 1500 else send(data, addr)

        monkeypatch.setattr(connection._port, "send", narrow)
        with trio.fail_after(5):
            await round_trip(connection, os.urandom(100_000))
        assert connection.datagram_size == 1200
