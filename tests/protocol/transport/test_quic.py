"""The QUIC endpoint: loses nothing, leaks nothing, notices deaths, bears rubbish."""

from __future__ import annotations

import errno
import hashlib
import os
import random
import socket
import subprocess
import sys
from contextlib import suppress
from functools import partial

import pytest
import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from trio.testing import wait_all_tasks_blocked

from protocol.errors import LocalProtocolError, Lost, TimedOut, Unreachable
from protocol.transport.allowance import Allowance
from protocol.transport.limits import (
    CONNECTION_WINDOW,
    MAX_CONNECTIONS_PER_PEER,
    MAX_INCOMING_STREAMS,
    STRANGER_STREAMS,
    STRANGER_WINDOW,
    STREAM_WINDOW,
)
from protocol.transport.peer_id import peer_id_of
from protocol.transport.quic.connection import Connection
from protocol.transport.quic.stream import QuicStream
from protocol.transport.quic.udp import Addr, SendError
from tests.protocol.transport.quic_support import (
    HOST,
    dialling,
    serving,
    through_proxy,
)
from tests.support.waiting import eventually

MIB = 1024 * 1024


async def round_trip(connection: Connection, data: bytes) -> None:
    """Send `data` on a new stream and get it back."""
    stream = await connection.open_stream()
    received = bytearray()

    async def send() -> None:
        await stream.send(data)
        await stream.finish()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        while piece := await stream.receive():
            received += piece
    assert bytes(received) == data
    await stream.aclose()


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


# --- rubbish and bounds


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
