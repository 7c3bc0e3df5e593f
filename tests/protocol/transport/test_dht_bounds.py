"""What strangers can make the DHT's server, the host and the dialler do: bounded, and shared."""

from __future__ import annotations

import socket
from contextlib import AsyncExitStack
from contextvars import ContextVar
from types import SimpleNamespace
from typing import cast

import pytest
import trio
import trio.testing
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from libp2p.abc import IHost
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.kad_dht.common import BUCKET_SIZE
from libp2p.kad_dht.pb.kademlia_pb2 import Record
from libp2p.kad_dht.peer_routing import PeerRouting
from libp2p.peer.envelope import seal_record
from libp2p.peer.id import ID
from libp2p.peer.peer_record import PeerRecord
from libp2p.peer.peerinfo import PeerInfo
from multiaddr import Multiaddr

from protocol.errors import Lost, TimedOut
from protocol.transport.libp2p import Libp2pTransport
from protocol.transport.libp2p.kad_server import KAD, BoundedProviders, BoundedValues
from protocol.transport.libp2p.peers import BoundedPeers
from protocol.transport.limits import (
    DHT_MAX_INCOMING,
    HOST_MAX_PEERS,
    HOST_MAX_PROTOCOLS,
    HOST_MAX_RECORD,
    HOST_MAX_TEXT,
    HOST_STREAM_BYTES,
    MAX_DIAL_ADDRS,
    MAX_DIALS,
    STRANGER_STREAMS,
)
from protocol.transport.origin import HERE
from protocol.transport.peer_id import peer_id_of
from tests.protocol.transport.quic_support import HOST
from tests.protocol.transport.test_libp2p import opened
from tests.support.waiting import eventually

KEY = b"\x12\x20" + bytes(32)


def stranger(number: int) -> ID:
    """A peer id."""
    return ID(b"\x12\x20" + number.to_bytes(32, "big"))


def places(count: int) -> list[Multiaddr]:
    """So many addresses."""
    return [Multiaddr(f"/ip4/192.0.2.1/udp/{port}/quic-v1") for port in range(1, count + 1)]


# --- the host's memory


def test_ten_thousand_identities_are_not_remembered() -> None:
    """The latest are, with a few addresses, protocols and texts of each; and the host itself always is."""
    key_pair = create_new_key_pair(bytes(32))
    me = ID.from_pubkey(key_pair.public_key)
    peers = BoundedPeers(me)
    peers.add_key_pair(me, key_pair)
    for number in range(10_000):
        peer = stranger(number)
        peers.add_addrs(peer, places(2), 3600)
        peers.set_protocols(peer, ["/a"])
    assert len(peers.peer_data_map) == HOST_MAX_PEERS
    assert peers.privkey(me) == key_pair.private_key
    assert peers.addrs(stranger(9_999)) == places(2)
    assert not peers.has_peer(stranger(0))


def test_a_peer_says_little_of_itself() -> None:
    """However long its lists are, and however often it sends them."""
    peers = BoundedPeers(stranger(0))
    peer = stranger(1)
    for start in range(5):
        peers.add_addrs(peer, places(100 * (start + 1)), 3600)
        peers.add_protocols(peer, [f"/{start}/{number}" for number in range(100)])
    peers.set_protocols(peer, ["x" * (HOST_MAX_TEXT + 1), *peers.get_protocols(peer)])
    peers.put(peer, "agent", "x" * (HOST_MAX_TEXT + 1))
    assert len(peers.addrs(peer)) <= MAX_DIAL_ADDRS
    assert len(peers.get_protocols(peer)) == HOST_MAX_PROTOCOLS
    assert max(map(len, peers.get_protocols(peer))) < HOST_MAX_TEXT
    assert "agent" not in peers.peer_data_map[peer].metadata


def test_a_signed_record_is_small() -> None:
    """One with very many addresses is worth nothing, one with a few is kept."""
    keys = create_new_key_pair(bytes(32))
    peers = BoundedPeers(stranger(0))
    peer = ID.from_pubkey(keys.public_key)
    assert not peers.consume_peer_record(seal_record(PeerRecord(peer, places(500)), keys.private_key), 3600)
    small = seal_record(PeerRecord(peer, places(3)), keys.private_key)
    assert len(small.raw_payload) < HOST_MAX_RECORD
    assert peers.consume_peer_record(small, 3600)


# --- providers


def providers(origins: dict[str, str]) -> BoundedProviders:
    """A store where peers are where `origins` says."""
    host = SimpleNamespace(get_id=lambda: stranger(0))
    store = BoundedProviders(
        cast(IHost, host), cast(PeerRouting, None), lambda peer: origins.get(peer, "there")
    )
    return store


def test_providers_of_one_origin_do_not_push_out_another() -> None:
    """However many identities of one block of addresses provide a key, a node elsewhere stays among its providers."""
    honest = stranger(1)
    store = providers({str(honest): "here"})
    store.add_provider(KEY, PeerInfo(honest, places(1)))
    for number in range(2, 200):
        store.add_provider(KEY, PeerInfo(stranger(number), places(300)))
    found = store.get_providers(KEY)
    assert len(found) == BUCKET_SIZE
    assert honest in [info.peer_id for info in found]
    assert all(len(info.addrs) <= MAX_DIAL_ADDRS for info in found)


def test_providers_are_bounded_in_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Over all keys, and what is forgotten leaves nothing behind."""
    monkeypatch.setattr("protocol.transport.libp2p.kad_server.DHT_MAX_PROVIDERS", 50)
    honest = stranger(1)
    store = providers({str(honest): "here"})
    store.add_provider(KEY, PeerInfo(honest, places(1)))
    for number in range(2, 500):
        store.add_provider(b"\x12\x20" + number.to_bytes(32, "big"), PeerInfo(stranger(2 + number % 7), []))
    assert sum(map(len, store.providers.values())) == 50
    assert len(store._of_key) == len(store.providers) == 50
    assert [info.peer_id for info in store.get_providers(KEY)] == [honest]


# --- values


def test_values_of_one_origin_do_not_push_out_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many values one block of addresses puts, those put from elsewhere stay, and all of them are bounded."""
    monkeypatch.setattr("protocol.transport.libp2p.kad_server.DHT_MAX_VALUES", 50)
    putter = ContextVar("putter", default="here")
    store = BoundedValues(cast(IHost, SimpleNamespace()), stranger(0), putter)
    store.put_record(b"ours", Record(key=b"ours", value=b"1"))
    putter.set("there")
    for number in range(500):
        key = b"%d" % number
        store.put_record(key, Record(key=key, value=b"1"))
    assert len(store.store) == 50
    assert store.get(b"ours") is not None
    assert store.get(b"499") is not None


@pytest.mark.net
async def test_a_value_is_counted_for_where_it_comes_from() -> None:
    """A node's own is its own, a peer's that of the peer's origin."""
    async with opened() as server, opened() as client:
        await client.connect(server.addrs[0])
        await client.dht.put("key", b"1")
        values = server.dht._server.value_store
        assert isinstance(values, BoundedValues)
        await server.dht.put("own", b"1")
        assert values._all._places[b"key"][0] == "127.0.0.0/24"
        assert values._all._places[b"own"][0] == HERE


# --- streams


@pytest.mark.net
async def test_silent_dht_streams_lock_nobody_out() -> None:
    """More of them than are served at once, and a question is answered."""
    async with opened() as server, opened() as honest, AsyncExitStack() as stack:
        for _ in range(DHT_MAX_INCOMING // STRANGER_STREAMS + 1):
            cheat = await stack.enter_async_context(opened(listen=(), dht="client"))
            for _ in range(STRANGER_STREAMS - 2):
                stream = await cheat.open_stream(server.peer, server.addrs, KAD)
                await stream.send(b"\xff")
        slots = server.dht._server._slots
        await eventually(lambda: len(slots) == DHT_MAX_INCOMING)
        with trio.fail_after(3):
            await honest.connect(server.addrs[0])
            assert await honest.dht.try_node(server.peer)


@pytest.mark.net
async def test_identify_reads_no_more_than_it_needs() -> None:
    """A peer that pushes a megabyte of itself is cut off."""
    async with opened() as server, opened(listen=(), dht="client") as cheat:
        stream = await cheat.open_stream(server.peer, server.addrs, "/ipfs/id/push/1.0.0")
        said = b"\xff\xff\x3f" + bytes(16 * HOST_STREAM_BYTES)
        with trio.fail_after(5), pytest.raises(Lost):
            await stream.send(said)


# --- dialling


async def test_a_dial_that_nobody_waits_for_ends() -> None:
    """It stops when the last of those who wait for it gives up, and not before."""
    nobody = peer_id_of(Ed25519PrivateKey.generate().public_key())
    with socket.socket(type=socket.SOCK_DGRAM) as silent:
        silent.bind((HOST, 0))
        addr = f"/ip4/{HOST}/udp/{silent.getsockname()[1]}/quic-v1"
        async with opened() as transport, trio.open_nursery() as nursery:

            async def wait(task_status: trio.TaskStatus[trio.CancelScope]) -> None:
                with trio.CancelScope() as scope:
                    task_status.started(scope)
                    await transport.connection(nobody, [addr])

            first: trio.CancelScope = await nursery.start(wait)
            second: trio.CancelScope = await nursery.start(wait)
            await eventually(lambda: len(transport._endpoint.connections) == 1)
            first.cancel()
            await trio.testing.wait_all_tasks_blocked()
            assert len(transport._endpoint.connections) == 1
            second.cancel()
            await trio.testing.wait_all_tasks_blocked()
            assert transport._endpoint.connections == []
            assert transport._dials == {}


async def test_dials_are_bounded_and_the_oldest_gives_way() -> None:
    """Beyond so many peers dialled at once, the first fails, and a peer that is there is reached."""
    with socket.socket(type=socket.SOCK_DGRAM) as silent:
        silent.bind((HOST, 0))
        addr = f"/ip4/{HOST}/udp/{silent.getsockname()[1]}/quic-v1"
        async with opened() as transport, opened() as there, trio.open_nursery() as nursery:
            failed: list[int] = []

            async def dial(number: int, transport: Libp2pTransport = transport) -> None:
                nobody = peer_id_of(Ed25519PrivateKey.generate().public_key())
                try:
                    await transport.connection(nobody, [addr])
                except TimedOut:
                    failed.append(number)

            for number in range(MAX_DIALS):
                nursery.start_soon(dial, number)
                await eventually(lambda number=number: len(transport._dials) == number + 1)  # type: ignore[misc]
            with trio.fail_after(1):
                await transport.connection(there.peer, there.addrs)
            await trio.testing.wait_all_tasks_blocked()
            assert failed == [0]
            nursery.cancel_scope.cancel()
