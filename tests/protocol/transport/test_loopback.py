"""A stream from a peer to itself keeps the promises of every stream."""

from __future__ import annotations

import pytest
import trio

from protocol import identity as identities
from protocol.errors import LocalProtocolError, Lost, Unreachable
from protocol.transport.base import Stream
from protocol.transport.loopback import loopback_pair
from protocol.transport.memory import Network


async def test_bytes_then_finish() -> None:
    """What was sent before the half-close arrives before b"", in order, both ways."""
    a, b = loopback_pair("me")
    await a.send(b"one")
    await a.send(memoryview(b"two"))
    await a.finish()
    await b.send(b"back")
    assert [await b.receive(), await b.receive(), await b.receive()] == [b"one", b"two", b""]
    assert await a.receive() == b"back"
    with pytest.raises(LocalProtocolError):
        await a.send(b"more")


async def test_reset_is_lost_at_both_ends() -> None:
    """After a reset neither end receives or sends any more, and a second reset does nothing."""
    a, b = loopback_pair("me")
    a.reset()
    a.reset()
    for end in (a, b):
        with pytest.raises(Lost):
            await end.receive()
    with pytest.raises(Lost):
        await b.send(b"x")


async def test_a_slow_reader_holds_the_sender() -> None:
    """The sender waits once the queue is full, and goes on when something is read."""
    a, b = loopback_pair("me")
    with trio.move_on_after(0.05) as waiting:
        for _ in range(1000):
            await a.send(b"x")
    assert waiting.cancelled_caught
    await b.receive()
    await a.send(b"y")


async def test_a_transport_reaches_its_own_handlers() -> None:
    """Opening a stream to oneself runs one's own handler, or says that it is not served."""

    async def echo(stream: Stream) -> None:
        await stream.send(await stream.receive())

    network = Network()
    me = identities.generate()
    async with network.transport(me.key) as transport:
        transport.serve("/echo/1", echo)
        stream = await transport.open_stream(me.peer, (), "/echo/1")
        await stream.send(b"hello")
        assert await stream.receive() == b"hello"
        with pytest.raises(Unreachable):
            await transport.open_stream(me.peer, (), "/other/1")
