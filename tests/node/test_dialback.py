"""Nodes dial whoever asks whether it can be reached: over real QUIC, at loopback."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest
import trio

from node.presence.dialback import DIALS_BURST, DialBacks
from protocol import identity
from protocol.errors import PeerUnavailable
from protocol.hints import RecordRule
from protocol.identity import Identity
from protocol.messages import DIAL_PROTOCOL, DialRequest
from protocol.talk.exchange import ask_dial
from protocol.transport.addresses import parse_address
from protocol.transport.base import PeerAddrs, Stream, Transport
from protocol.transport.dialling import PLACE_DATAGRAMS
from protocol.transport.libp2p import open_transport
from tests.support.local_swarm import LOOPBACK

pytestmark = pytest.mark.net


@asynccontextmanager
async def place(*listen: str, me: Identity | None = None) -> AsyncIterator[Transport]:
    """Somebody's, who hangs up on whoever dials."""

    async def hang_up(stream: Stream) -> None:
        await stream.aclose()

    key = (me or identity.generate()).key
    async with open_transport(key, listen=listen, validate=RecordRule()) as transport:
        transport.serve(DIAL_PROTOCOL, hang_up)
        yield transport


def port_of(transport: Transport) -> int:
    return parse_address(transport.addrs[0]).port


async def test_a_node_says_whether_it_reached_who_asks() -> None:
    """Where it listens, where nobody does, where somebody else does; and after a few times it says nothing."""
    async with place(LOOPBACK) as node, place() as asker, place(LOOPBACK) as listener:
        DialBacks(node).serve()
        at = PeerAddrs(node.peer, node.addrs)
        reply = await ask_dial(asker, at, DialRequest(listener.peer, port_of(listener)))
        assert (reply.host, reply.reached, reply.why) == ("127.0.0.1", True, "it answered")
        other = identity.generate().peer
        reply = await ask_dial(asker, at, DialRequest(other, port_of(listener)))
        assert (reply.host, reply.reached, bool(reply.why)) == ("127.0.0.1", False, True)
        reply = await ask_dial(asker, at, DialRequest(listener.peer, port_of(listener)))
        assert "already" in reply.why
        assert not (await ask_dial(asker, at, DialRequest(node.peer, 1))).reached
        assert DIALS_BURST == 4  # asked so far
        with pytest.raises(PeerUnavailable):
            await ask_dial(asker, at, DialRequest(other, 9))


async def test_a_node_dials_nobody_elses_address() -> None:
    """Port 0, and what is no peer, lead nowhere; the node serves on."""
    async with place(LOOPBACK) as node, place() as asker:
        DialBacks(node).serve()
        at = PeerAddrs(node.peer, node.addrs)
        with trio.fail_after(20):
            assert not (await ask_dial(asker, at, DialRequest(identity.generate().peer, 0))).reached
            assert not (await ask_dial(asker, at, DialRequest("192.0.2.9/udp/1", 4001))).reached


async def test_who_asks_for_dials_of_silence_gets_few_datagrams_sent() -> None:
    """However many ask, and however often: what a port gets that answers nothing is bounded by its place."""
    heard = 0

    async def listen(port: trio.socket.SocketType) -> None:
        nonlocal heard
        while True:
            await port.recv(65_535)
            heard += 1

    async def ask(node: Transport, port: int) -> None:
        async with place() as asker:
            for _ in range(2 * DIALS_BURST):
                with suppress(PeerUnavailable):
                    request = DialRequest(identity.generate().peer, port)
                    reply = await ask_dial(asker, PeerAddrs(node.peer, node.addrs), request)
                    assert not reply.reached

    silent = trio.socket.socket(type=trio.socket.SOCK_DGRAM)
    await silent.bind(("127.0.0.1", 0))
    async with place(LOOPBACK) as node, trio.open_nursery() as nursery:
        DialBacks(node).serve()
        nursery.start_soon(listen, silent)
        async with trio.open_nursery() as askers:
            for _ in range(4):
                askers.start_soon(ask, node, silent.getsockname()[1])
        nursery.cancel_scope.cancel()
    silent.close()
    assert 0 < heard <= PLACE_DATAGRAMS
