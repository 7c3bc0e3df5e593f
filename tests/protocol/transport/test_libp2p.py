"""The transport over QUIC and libp2p: addresses, one connection for all, the host, the DHT with dead nodes."""

from __future__ import annotations

import logging
import random
import socket
import time
from contextlib import AsyncExitStack

import pytest
import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from libp2p.kad_dht import kad_dht, peer_routing, provider_store, value_store
from libp2p.peer.id import ID
from libp2p.peer.peerinfo import PeerInfo
from libp2p.peer.peerstore import PeerStoreError
from trio.testing import wait_all_tasks_blocked

from protocol.errors import ConfigError, Lost, TimedOut, Unreachable
from protocol.transport.addresses import parse_address
from protocol.transport.base import Stream
from protocol.transport.libp2p import Libp2pTransport, open_transport
from protocol.transport.libp2p.dht import _provider_key
from protocol.transport.libp2p.host import Host
from protocol.transport.libp2p.kad_server import KAD
from protocol.transport.libp2p.patches import apply_patches
from protocol.transport.limits import DHT_MAX_MESSAGE, DHT_QUERY_TIMEOUT_S
from protocol.transport.quic.udp import Addr
from protocol.transport.validator import AcceptAll
from tests.protocol.transport.conftest import LOOPBACK
from tests.protocol.transport.quic_support import HOST, through_proxy
from tests.protocol.transport.test_conformance import read_all
from tests.support.waiting import eventually

ECHO = "/test/echo/1"


def opened(listen: tuple[str, ...] = LOOPBACK, **options: object):  # type: ignore[no-untyped-def]
    """A transport of a new peer."""
    options.setdefault("validate", AcceptAll())
    return open_transport(Ed25519PrivateKey.generate(), listen=listen, **options)  # type: ignore[arg-type]


async def echo(stream: Stream) -> None:
    """Send back what comes."""
    while data := await stream.receive():
        await stream.send(data)


def knows(host: Host, peer: ID) -> bool:
    """Whether identify has told `host` that `peer` is a DHT server."""
    try:
        return KAD in host.get_peerstore().get_protocols(peer)
    except PeerStoreError:
        return False


def routing_table_size(transport: Libp2pTransport) -> int:
    """How many DHT servers a peer knows."""
    return transport.dht._server.get_routing_table_size()


# --- addresses


async def test_all_interfaces_are_announced_with_the_peer() -> None:
    """0.0.0.0 stands for each address of the machine and loopback, with the real port."""
    async with opened(("/ip4/0.0.0.0/udp/0/quic-v1",)) as transport:
        addresses = [parse_address(text) for text in transport.addrs]
        assert {address.peer for address in addresses} == {transport.peer}
        assert len({address.port for address in addresses}) == 1
        assert addresses[0].port != 0
        hosts = [address.host for address in addresses]
        assert hosts[-1] == "127.0.0.1"
        assert "0.0.0.0" not in hosts


async def test_announced_addresses_replace_the_bound_ones() -> None:
    """A peer behind a forwarded port says what it is told to say."""
    place = "/ip4/192.0.2.7/udp/4001/quic-v1"
    async with opened(announce=[place]) as transport:
        assert transport.addrs == (f"{place}/p2p/{transport.peer}",)


async def test_a_peer_that_only_dials_has_no_addresses() -> None:
    """And it can be talked to over the connection it made."""
    async with opened() as server, opened((), dht="client") as client:
        server.serve(ECHO, echo)
        client.serve(ECHO, echo)
        assert client.addrs == ()
        await client.connect(server.addrs[0])
        with trio.fail_after(2):
            stream = await server.open_stream(client.peer, [], ECHO)
            await stream.send(b"x")
            assert await stream.receive() == b"x"


async def test_ipv6() -> None:
    """A peer may listen on and be dialled over IPv6."""
    try:
        async with opened(("/ip6/::1/udp/0/quic-v1",)) as server, opened(()) as client:
            server.serve(ECHO, echo)
            stream = await client.open_stream(server.peer, server.addrs, ECHO)
            await stream.send(b"x")
            assert await stream.receive() == b"x"
            _, _, tail = server.addrs[0].partition("/udp/")
            with trio.fail_after(1), pytest.raises(Unreachable):
                await client.open_stream(client.peer[:-1] + "X", ["/ip6/::1/udp/9/quic-v1"], ECHO)
            assert tail
    except ConfigError:
        pytest.skip("no IPv6 here")


async def test_a_taken_port_is_a_config_error() -> None:
    """In one line that names the address."""
    with socket.socket(type=socket.SOCK_DGRAM) as taken:
        taken.bind((HOST, 0))
        place = f"/ip4/{HOST}/udp/{taken.getsockname()[1]}/quic-v1"
        with pytest.raises(ConfigError, match=f"cannot listen on {place}: the port is taken"):
            async with opened((place,)):
                pass


@pytest.mark.parametrize("place", ["rubbish", "/ip4/127.0.0.1/tcp/1", "/dns4/example.org/udp/1/quic-v1"])
async def test_a_malformed_listen_address_is_a_config_error(place: str) -> None:
    """Before anything is opened."""
    with pytest.raises(ConfigError):
        async with opened((place,)):
            pass


async def test_what_the_body_raises_is_not_wrapped() -> None:
    """A caller's own exception passes through the transport as it is."""
    with pytest.raises(ValueError, match="mine"):
        async with opened():
            raise ValueError("mine")


# --- connections and streams


async def test_concurrent_opens_share_one_dial() -> None:
    """Fifty streams to a new peer at once make one connection."""
    async with opened() as server, opened() as client:
        server.serve(ECHO, echo)

        async def one() -> None:
            stream = await client.open_stream(server.peer, server.addrs, ECHO)
            await stream.send(b"x")
            assert await stream.receive() == b"x"
            await stream.aclose()

        async with trio.open_nursery() as nursery:
            for _ in range(50):
                nursery.start_soon(one)
        assert client._endpoint.statistics()["connections"] == 1
        assert server._endpoint.statistics()["connections"] == 1


@pytest.mark.slow
async def test_a_dial_that_somebody_else_began_badly_is_tried_again() -> None:
    """Who waits for a dial of wrong addresses then tries its own."""
    async with opened() as server, opened() as client:
        server.serve(ECHO, echo)
        with socket.socket(type=socket.SOCK_DGRAM) as silent:
            silent.bind((HOST, 0))
            wrong = f"/ip4/{HOST}/udp/{silent.getsockname()[1]}/quic-v1"
            async with trio.open_nursery() as nursery:

                async def badly() -> None:
                    with pytest.raises(TimedOut):
                        await client.open_stream(server.peer, [wrong], ECHO)

                nursery.start_soon(badly)
                await wait_all_tasks_blocked()
                with trio.fail_after(8):
                    stream = await client.open_stream(server.peer, server.addrs, ECHO)
                    await stream.send(b"x")
                    assert await stream.receive() == b"x"


async def test_a_stream_takes_one_flight(monkeypatch: pytest.MonkeyPatch) -> None:
    """Opening sends nothing; the protocol wanted and the first data leave in one datagram."""
    async with opened() as server, opened() as client:
        server.serve(ECHO, echo)
        await client.connect(server.addrs[0])
        connection = client._endpoint.connection(server.peer)
        assert connection is not None
        send = connection._port.send
        sent: list[int] = []

        def counted(data: bytes, addr: Addr) -> int:
            sent.append(len(data))
            return int(send(data, addr))

        monkeypatch.setattr(connection._port, "send", counted)
        stream = await client.open_stream(server.peer, [], ECHO)
        sent.clear()
        await stream.send(b"x" * 1000)
        assert sent[0] > 1000
        assert await stream.receive() == b"x" * 1000


async def test_the_host_shares_the_connections_and_identifies() -> None:
    """py-libp2p's host learns of dialled and accepted connections, and identify tells each the other's protocols."""
    async with opened() as server, opened() as client:
        await client.connect(server.addrs[0])
        for one, other in ((client, server), (server, client)):
            host = one._host
            assert host is not None
            peer = ID.from_base58(other.peer)

            await eventually(lambda host=host, peer=peer: knows(host, peer))  # type: ignore[misc]
            assert len(host.get_network().connections[peer]) == 1
        await eventually(lambda: routing_table_size(server) == 1)


async def test_the_hosts_tables_forget_ended_connections() -> None:
    """After peers come and go, the host's network holds none of them."""
    async with opened() as server:
        for _ in range(5):
            async with opened(()) as client:
                await client.connect(server.addrs[0])
        assert server._host is not None
        network = server._host.network
        await eventually(lambda: not network.connections and not network._adopted)
        await eventually(lambda: server._endpoint.statistics()["connections"] == 0)


async def test_a_dht_client_is_in_no_routing_table() -> None:
    """Who asks without answering is not passed on to others."""
    async with opened() as server, opened(dht="client") as client:
        await client.connect(server.addrs[0])
        await client.dht.put("/test/k", b"v")
        await trio.sleep(0.2)
        assert routing_table_size(server) == 0
        assert routing_table_size(client) == 1


async def test_a_peer_that_hangs_in_negotiation_does_not_hold_others_up() -> None:
    """A stream that never says its protocol is only itself stuck."""
    async with opened() as server, opened() as client:
        server.serve(ECHO, echo)
        await client.connect(server.addrs[0])
        connection = client._endpoint.connection(server.peer)
        assert connection is not None
        for _ in range(10):
            await (await connection.open_stream()).send(b"\x13/multi")
        with trio.fail_after(1):
            stream = await client.open_stream(server.peer, [], ECHO)
            await stream.send(b"x")
            assert await stream.receive() == b"x"


async def test_rubbish_in_negotiation_ends_that_stream() -> None:
    """What is no multistream-select resets its stream and nothing else."""
    async with opened() as server, opened() as client:
        await client.connect(server.addrs[0])
        connection = client._endpoint.connection(server.peer)
        assert connection is not None
        for rubbish in (b"\x00", b"\xff\xff\xff", b"\x05abc\n\n", b"\x02\xff\n", b"GET / HTTP/1.1\r\n" * 100):
            stream = await connection.open_stream()
            await stream.send(rubbish)
            with trio.fail_after(2), pytest.raises(Lost):
                await read_all(stream)
        assert connection.error is None


async def test_a_peer_is_where_it_receives() -> None:
    """Datagrams may claim to come from anywhere: until the peer answers from there too, it has not moved."""
    async with opened() as server, opened() as client:
        await client.connect(server.addrs[0])
        await eventually(lambda: server.place_of(client.peer) is not None)
        before = server.place_of(client.peer)
        connection = client._endpoint.connection(server.peer)
        behind = server._endpoint.connection(client.peer)
        assert connection is not None
        assert behind is not None
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as elsewhere:
            elsewhere.bind(("127.0.0.1", 0))
            place = elsewhere.getsockname()
            with trio.fail_after(5):
                while behind.addr != place:  # what the client itself still sends moves it back
                    connection._core.send_ping(7)
                    for data, addr in connection._core.datagrams_to_send(trio.current_time()):
                        elsewhere.sendto(data, addr)
                    await trio.sleep(0.01)
            assert server.place_of(client.peer) == before


# --- the DHT


async def join(stack: AsyncExitStack, count: int) -> list[Libp2pTransport]:
    """`count` peers that know each other through the first."""
    peers = [await stack.enter_async_context(opened()) for _ in range(count)]
    for peer in peers[1:]:
        await peer.connect(peers[0].addrs[0])
    return peers


@pytest.mark.net
async def test_the_dht_with_a_third_of_the_nodes_dead() -> None:
    """Lookups find what was stored, quickly, though every third node has silently gone."""
    rng = random.Random(3)
    async with AsyncExitStack() as stack:
        peers = await join(stack, 18)
        for number in range(6):
            await peers[number].dht.provide(f"model-{number}")
            await peers[number].dht.put(f"/test/{number}", b"%d" % number)
        for dead in peers[12:]:
            for port in dead._endpoint.ports:
                port.close()  # without a goodbye
        slowest = 0.0
        for number in range(6):
            reader = rng.choice(peers[6:12])
            begin = time.monotonic()
            with trio.fail_after(5):
                found = await reader.dht.providers(f"model-{number}")
                assert peers[number].peer in {entry.peer for entry in found}
                assert await reader.dht.get(f"/test/{number}") == b"%d" % number
            slowest = max(slowest, time.monotonic() - begin)
        assert slowest < 4


async def test_a_swarm_outlives_the_node_it_was_joined_through() -> None:
    """Who joins through one node soon knows others, and needs the first no more."""
    addrs: list[str] = []
    leave, left = trio.Event(), trio.Event()

    async def run_first() -> None:
        async with opened() as first:
            addrs.extend(first.addrs)
            await leave.wait()
        left.set()

    async with trio.open_nursery() as nursery, AsyncExitStack() as stack:
        nursery.start_soon(run_first)
        peers = [await stack.enter_async_context(opened()) for _ in range(4)]
        for peer in peers:
            await peer.connect(addrs[0])
        for peer in peers:
            await eventually(lambda peer=peer: routing_table_size(peer) >= 2)  # type: ignore[misc]
        leave.set()
        await left.wait()
        with trio.fail_after(5):
            await peers[0].dht.provide("model")
            assert [entry.peer for entry in await peers[3].dht.providers("model")] == [peers[0].peer]


def test_patches_are_in_force_once_applied() -> None:
    """A dead node costs py-libp2p's own queries what it costs ours, and its loggers keep quiet."""
    apply_patches()
    for module in (kad_dht, peer_routing, provider_store, value_store):
        assert module.QUERY_TIMEOUT == DHT_QUERY_TIMEOUT_S
        assert module.MAX_DHT_MESSAGE_SIZE == DHT_MAX_MESSAGE
    assert not logging.getLogger("libp2p.kad_dht.kad_dht").isEnabledFor(logging.ERROR)
    assert not logging.getLogger("quic").isEnabledFor(logging.WARNING)


@pytest.mark.slow
async def test_a_silent_node_costs_a_lookup_one_timeout() -> None:
    """A node behind a path that swallows everything delays a lookup by one question's time, once."""
    async with opened() as a, opened() as b, opened() as c:
        await b.connect(a.addrs[0])
        await c.connect(a.addrs[0])
        await b.dht.put("/test/k", b"v")
        async with through_proxy(parse_address(c.addrs[0]).port) as proxy:
            proxy.silent = True
            lost = f"/ip4/{HOST}/udp/{proxy.port}/quic-v1"
            stranger = ID.from_base58("12D3KooW" + c.peer[8:-1] + ("a" if c.peer[-1] != "a" else "b"))
            b.dht.learn(stranger.to_base58(), [lost])
            b.dht._server.host.get_peerstore().add_protocols(stranger, [KAD])
            await b.dht._server.add_peer(stranger)
            begin = trio.current_time()
            assert await b.dht.get("/test/k") == b"v"
            assert trio.current_time() - begin < 3
            begin = trio.current_time()
            assert await b.dht.get("/test/k") == b"v"
            assert trio.current_time() - begin < 1


async def test_the_network_is_asked_even_when_a_copy_is_here() -> None:
    """What this node stores for others does not hide what is newer elsewhere."""

    class Newer(AcceptAll):
        def newer(self, a: bytes, b: bytes) -> bool:
            return int(a) > int(b)

    async with opened(validate=Newer()) as a, opened(validate=Newer()) as b:
        await b.connect(a.addrs[0])
        await eventually(lambda: routing_table_size(a) == 1)
        await b.dht.put("/test/k", b"1")
        b.dht._server.keep(b"/test/k", b"2")
        assert await a.dht.get("/test/k") == b"2"


async def test_providers_make_room_for_newer_ones() -> None:
    """A full list of providers does not keep a living newcomer out."""
    async with opened() as a, opened() as b:
        await b.connect(a.addrs[0])
        key = _provider_key("model")
        for _ in range(25):
            peer = ID(bytes.fromhex("002408011220") + random.Random(_).randbytes(32))
            a.dht._server.provider_store.add_provider(key, PeerInfo(peer, []))
        assert len(a.dht._server.provider_store.get_providers(key)) == 20
        await b.dht.provide("model")
        found = [info.peer_id.to_base58() for info in a.dht._server.provider_store.get_providers(key)]
        assert b.peer in found
        assert len(found) == 20
