"""What every transport promises, held against each implementation."""

from __future__ import annotations

import logging
import random

import pytest
import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from protocol.errors import ConfigError, LocalProtocolError, Lost, Malformed, Unreachable
from protocol.transport.addresses import parse_address
from protocol.transport.base import Stream, Transport
from protocol.transport.limits import SEND_BUFFER, STREAM_WINDOW
from protocol.transport.origin import origin_of
from protocol.transport.peer_id import peer_id_of
from tests.protocol.transport.conftest import Peers

ECHO = "/test/echo/1"


async def read_all(stream: Stream) -> bytes:
    """Everything until the peer finishes."""
    data = bytearray()
    while piece := await stream.receive():
        data += piece
    return bytes(data)


async def read_exactly(stream: Stream, size: int) -> bytes:
    """`size` bytes, and not one more may come with them."""
    data = bytearray()
    while len(data) < size:
        piece = await stream.receive()
        assert piece, "the stream ended early"
        data += piece
    assert len(data) == size
    return bytes(data)


async def echo(stream: Stream) -> None:
    """Send back what comes, until the end."""
    while data := await stream.receive():
        await stream.send(data)
    await stream.finish()


async def ask(opener: Transport, server: Transport, protocol: str) -> bytes:
    """Open a stream, say hello, and take the first answer."""
    stream = await open_to(opener, server, protocol)
    await stream.send(b"hello")
    return await stream.receive()


async def open_to(opener: Transport, server: Transport, protocol: str = ECHO) -> Stream:
    """A stream to `server` by its own addresses."""
    return await opener.open_stream(server.peer, server.addrs, protocol)


async def test_echo_in_pieces(net: Peers) -> None:
    """Bytes come back whole and in order, whatever the sizes of the pieces."""
    rng = random.Random(1)
    async with net.peers(2) as (a, b):
        b.serve(ECHO, echo)
        stream = await open_to(a, b)
        assert stream.peer == b.peer
        with trio.fail_after(10):
            for size in (1, 2, 1000, 1200, 8192, 70_000, 300_000):
                data = rng.randbytes(size)
                await stream.send(memoryview(data))
                assert await read_exactly(stream, size) == data
            await stream.finish()
            assert await stream.receive() == b""
            assert await stream.receive() == b""
        await stream.aclose()
        await stream.aclose()


async def test_what_there_is_room_for_goes_at_once(net: Peers) -> None:
    """Room is there once the peer has answered; what goes there comes in its turn; when all is full there is none."""
    there = trio.Event()

    async def read_late(stream: Stream) -> None:
        await stream.send(await stream.receive())
        await there.wait()
        await stream.send((await read_all(stream))[:100])

    async with net.peers(2) as (a, b):
        b.serve(ECHO, read_late)
        with trio.fail_after(10):
            stream = await open_to(a, b)
            await stream.send(b"hello")
            assert await stream.receive() == b"hello"
            stream.send_now(b"first")
            stream.send_now(bytes(100_000))
            while (room := stream.room) > 0:
                stream.send_now(bytes(room))
            there.set()
            await stream.send(b"last")
            await stream.finish()
            assert stream.room == 0
            assert await read_all(stream) == b"first" + bytes(95)
            stream.reset()
            assert stream.room == 0


async def test_half_close_leaves_the_other_direction(net: Peers) -> None:
    """After finish one may still receive; sending raises LocalProtocolError."""

    async def answer_after_the_end(stream: Stream) -> None:
        data = await read_all(stream)
        await stream.send(data[::-1])

    async with net.peers(2) as (a, b):
        b.serve(ECHO, answer_after_the_end)
        with trio.fail_after(5):
            stream = await open_to(a, b)
            await stream.send(b"abc")
            await stream.finish()
            with pytest.raises(LocalProtocolError):
                await stream.send(b"more")
            assert await read_all(stream) == b"cba"
            await stream.aclose()


async def test_data_before_a_clean_finish_is_always_delivered(net: Peers) -> None:
    """A reply sent just before the handler returns arrives whole, even if the reader comes late."""
    reply = random.Random(2).randbytes(200_000)
    handled = trio.Event()

    async def reply_and_leave(stream: Stream) -> None:
        await stream.receive()
        await stream.send(reply)
        handled.set()

    async with net.peers(2) as (a, b):
        b.serve(ECHO, reply_and_leave)
        with trio.fail_after(5):
            stream = await open_to(a, b)
            await stream.send(b"?")
            await handled.wait()
            assert await read_all(stream) == reply


@pytest.mark.parametrize("who", ["opener", "handler"])
async def test_reset_is_lost_at_the_other_end(net: Peers, who: str) -> None:
    """A reset raises Lost in the peer's receive and at once in our own send and receive."""
    result: list[BaseException] = []
    seen, other_done = trio.Event(), trio.Event()

    async def handler(stream: Stream) -> None:
        await stream.receive()
        seen.set()
        if who == "handler":
            stream.reset()
            stream.reset()
            with pytest.raises(Lost):
                await stream.send(b"x")
        else:
            try:
                await stream.receive()
            except Lost as error:
                result.append(error)
        other_done.set()

    async with net.peers(2) as (a, b):
        b.serve(ECHO, handler)
        with trio.fail_after(5):
            stream = await open_to(a, b)
            await stream.send(b"x")
            await seen.wait()
            if who == "opener":
                stream.reset()
                with pytest.raises(Lost):
                    await stream.receive()
            else:
                with pytest.raises(Lost):
                    await stream.receive()
            await other_done.wait()
    assert who == "handler" or len(result) == 1


async def test_a_peer_that_leaves_is_lost(net: Peers) -> None:
    """When the peer ends, receive and (soon) send raise Lost, and a new dial is Unreachable."""
    async with net.peers(1) as (a,):
        async with net.peers(1) as (b,):
            b.serve(ECHO, echo)
            stream = await open_to(a, b)
            await stream.send(b"x")
            assert await stream.receive() == b"x"
            addrs, peer = b.addrs, b.peer
        with trio.fail_after(2):
            with pytest.raises(Lost):
                await stream.receive()
            with pytest.raises(Lost):
                await stream.send(bytes(10_000_000))
        stream.reset()
        await stream.aclose()
        with trio.fail_after(2), pytest.raises(Unreachable):
            await a.open_stream(peer, addrs, ECHO)


async def test_a_slow_reader_slows_the_sender_and_loses_nothing(net: Peers) -> None:
    """While nobody reads, send stops within the windows; then every byte arrives."""
    size = 8 * 1024 * 1024
    sent = 0
    may_read, done = trio.Event(), trio.Event()
    received = bytearray()

    async def slow(stream: Stream) -> None:
        await may_read.wait()
        received.extend(await read_all(stream))  # the first stream is reset: Lost
        done.set()

    data = random.Random(3).randbytes(size)
    async with net.peers(2) as (a, b):
        b.serve(ECHO, slow)
        stream = await open_to(a, b)
        with trio.fail_after(30):
            blocked = False
            while not blocked:
                piece = data[sent : sent + 16384]
                with trio.move_on_after(0.5) as scope:
                    await stream.send(piece)
                blocked = scope.cancelled_caught
                sent += 0 if blocked else len(piece)
                assert sent <= STREAM_WINDOW + SEND_BUFFER + 65536
            assert sent < size
            stream.reset()
            stream = await open_to(a, b)
            may_read.set()
            await stream.send(data)
            await stream.finish()
            await done.wait()
    assert bytes(received) == data


async def test_a_handlers_exception_ends_its_stream_only(
    net: Peers, caplog: pytest.LogCaptureFixture
) -> None:
    """The stream is reset and the traceback logged; another stream of the connection goes on."""

    async def fail(stream: Stream) -> None:
        await stream.receive()
        raise ValueError("deliberate")

    async with net.peers(2) as (a, b):
        b.serve(ECHO, echo)
        b.serve("/test/fail/1", fail)
        with trio.fail_after(5), caplog.at_level(logging.ERROR):
            good = await open_to(a, b)
            await good.send(b"1")
            assert await good.receive() == b"1"
            bad = await open_to(a, b, "/test/fail/1")
            await bad.send(b"x")
            with pytest.raises(Lost):
                await bad.receive()
            await good.send(b"2")
            assert await good.receive() == b"2"
    assert "deliberate" in caplog.text


async def test_an_unknown_protocol_is_unreachable(net: Peers) -> None:
    """Refused at the latest by the first receive, by name, and the connection lives on."""
    async with net.peers(2) as (a, b):
        b.serve(ECHO, echo)
        with trio.fail_after(5):
            with pytest.raises(Unreachable, match="does not speak /test/unknown/1"):
                await ask(a, b, "/test/unknown/1")
            stream = await open_to(a, b)
            await stream.send(b"1")
            assert await stream.receive() == b"1"


async def test_nobody_there_is_unreachable_fast(net: Peers) -> None:
    """An address where nobody listens costs well below a second."""
    stranger = peer_id_of(Ed25519PrivateKey.generate().public_key())
    async with net.peers(1) as (a,):
        with trio.fail_after(1), pytest.raises(Unreachable):
            await a.open_stream(stranger, [net.dead_addr], ECHO)
        with trio.fail_after(1), pytest.raises(Unreachable):
            await a.connect(f"{net.dead_addr}/p2p/{stranger}")
        with trio.fail_after(1), pytest.raises(Unreachable):
            await a.open_stream(stranger, [], ECHO)


async def test_another_peer_at_the_address_is_unreachable(net: Peers) -> None:
    """Who answers under another name is not whom we asked for."""
    stranger = peer_id_of(Ed25519PrivateKey.generate().public_key())
    async with net.peers(2) as (a, b):
        addr = b.addrs[0].partition("/p2p/")[0]
        with trio.fail_after(2), pytest.raises(Unreachable):
            await a.open_stream(stranger, [addr], ECHO)


async def test_one_good_address_among_bad_ones_is_enough(net: Peers) -> None:
    """All addresses are tried at once, and malformed ones that others announced are skipped."""
    async with net.peers(2) as (a, b):
        b.serve(ECHO, echo)
        with trio.fail_after(2):
            stream = await a.open_stream(b.peer, ["rubbish", net.dead_addr, *b.addrs], ECHO)
            await stream.send(b"1")
            assert await stream.receive() == b"1"


@pytest.mark.parametrize(
    "addr",
    ["", "rubbish", "/ip4/1.2.3.4/tcp/80", "/ip4/1.2.3/udp/1/quic-v1", "/ip4/127.0.0.1/udp/99999/quic-v1",
     "/ip4/127.0.0.1/udp/1/quic-v1", "/ip4/127.0.0.1/udp/1/quic-v1/p2p/x"],
)  # fmt: skip
async def test_a_malformed_address_is_a_config_error(net: Peers, addr: str) -> None:
    """One clear line, before anything is sent."""
    async with net.peers(1) as (a,):
        with pytest.raises(ConfigError) as caught:
            await a.connect(addr)
        assert "\n" not in str(caught.value)


async def test_many_streams_at_once(net: Peers) -> None:
    """Concurrent streams of one connection do not mix."""
    async with net.peers(2) as (a, b):
        b.serve(ECHO, echo)

        async def one(seed: int) -> None:
            data = random.Random(seed).randbytes(20_000 + seed)
            stream = await open_to(a, b)
            await stream.send(data)
            await stream.finish()
            assert await read_all(stream) == data
            await stream.aclose()

        with trio.fail_after(20):
            async with trio.open_nursery() as nursery:
                for seed in range(50):
                    nursery.start_soon(one, seed)


async def test_both_may_open_streams_over_one_connection(net: Peers) -> None:
    """Whoever dialled, the other may open streams too, without an address."""
    async with net.peers(2) as (a, b):
        a.serve(ECHO, echo)
        with trio.fail_after(5):
            assert await a.connect(b.addrs[0]) == b.peer
            stream = await b.open_stream(a.peer, [], ECHO)
            await stream.send(b"1")
            assert await stream.receive() == b"1"


async def test_where_a_peer_is(net: Peers) -> None:
    """Both ends see the other at the address it listens on, whoever dialled; a stream tells the block of it."""
    async with net.peers(2) as (a, b):
        b.serve(ECHO, echo)
        assert a.place_of(b.peer) is None
        stream = await open_to(a, b)
        with trio.fail_after(5):
            await stream.send(b"1")
            assert await stream.receive() == b"1"
        assert a.place_of(b.peer) == b.addrs[0]
        assert b.place_of(a.peer) == a.addrs[0]
        assert stream.origin == origin_of(parse_address(b.addrs[0]).host)
        await stream.aclose()


class Numbered:
    """Values are decimal numbers; the greater is newer."""

    def validate(self, key: str, value: bytes) -> None:
        """Numbers only."""
        if not value.isdigit():
            raise Malformed("no number")

    def newer(self, a: bytes, b: bytes) -> bool:
        """The greater."""
        return int(a) > int(b)


async def test_dht_values(net: Peers) -> None:
    """What one peer puts another gets; the newest wins; what is invalid is not stored."""
    async with net.peers(3, Numbered()) as (a, b, c):
        with trio.fail_after(15):
            await b.connect(a.addrs[0])
            await c.connect(a.addrs[0])
            assert await c.dht.get("/test/k") is None
            await b.dht.put("/test/k", b"1")
            assert await c.dht.get("/test/k") == b"1"
            await b.dht.put("/test/k", b"3")
            assert await c.dht.get("/test/k") == b"3"
            await c.dht.put("/test/k", b"2")
            assert await a.dht.get("/test/k") == b"3"
            with pytest.raises(LocalProtocolError):
                await b.dht.put("/test/k", b"rubbish")


async def test_dht_providers(net: Peers) -> None:
    """Others find a provider with its addresses; it does not find itself."""
    async with net.peers(4) as (a, b, c, d):
        with trio.fail_after(15):
            for peer in (b, c, d):
                await peer.connect(a.addrs[0])
            await b.dht.provide("model-x")
            await c.dht.provide("model-x")
            await c.dht.provide("model-x")
            found = {entry.peer: entry.addrs for entry in await d.dht.providers("model-x")}
            assert set(found) == {b.peer, c.peer}
            assert set(found[b.peer]) & set(b.addrs)
            assert {entry.peer for entry in await b.dht.providers("model-x")} == {c.peer}
            assert len(await d.dht.providers("model-x", limit=1)) == 1
            assert await d.dht.providers("model-y") == []
