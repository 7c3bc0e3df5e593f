"""The half of Kademlia that asks: lookups in one pass, bounded in time, that believe nobody twice.

Differs from py-libp2p's own client in what hurts a swarm with dead nodes: values and providers are asked for
on the way to the nodes nearest to the key (not after), nothing asked is cached as if it were known, a dead
node costs one time-out beside others, and it is dropped from the routing table.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice

import trio
from libp2p.kad_dht.pb.kademlia_pb2 import Message
from libp2p.peer.id import ID
from libp2p.peer.peerstore import PeerStoreError
from multiaddr import Multiaddr
from multiaddr.exceptions import Error as MultiaddrError

from protocol.errors import ConfigError, LocalProtocolError, PeerUnavailable, RemoteProtocolError
from protocol.transport.addresses import parse_address, with_peer
from protocol.transport.base import PeerAddrs, Stream
from protocol.transport.libp2p.kad_server import KAD, KadServer
from protocol.transport.libp2p.messages import read_message, write_message
from protocol.transport.limits import (
    DHT_ADDRESS_LIFE_S,
    DHT_CONCURRENCY,
    DHT_GET_QUORUM,
    DHT_LOOKUP_TIMEOUT_S,
    DHT_MAX_KEY,
    DHT_QUERY_TIMEOUT_S,
    DHT_REPLICAS,
    MAX_DIAL_ADDRS,
)
from protocol.transport.validator import DhtValidator

logger = logging.getLogger(__name__)

StreamOpener = Callable[[str, Sequence[str], str], Awaitable[Stream]]


@dataclass
class _Lookup:
    """The state of one lookup."""

    target: int
    candidates: dict[ID, int] = field(default_factory=dict)  # not asked yet, with their distances
    answered: dict[ID, int] = field(default_factory=dict)
    asked: set[ID] = field(default_factory=set)

    def add(self, peer: ID) -> None:
        if peer not in self.asked and peer not in self.candidates:
            self.candidates[peer] = _position(peer.to_bytes()) ^ self.target

    def next(self) -> ID | None:
        """The nearest node worth asking; None once the nearest k have answered."""
        if not self.candidates:
            return None
        peer = min(self.candidates, key=self.candidates.__getitem__)
        if len(self.answered) >= DHT_REPLICAS:
            farthest = sorted(self.answered.values())[DHT_REPLICAS - 1]
            if self.candidates[peer] > farthest:
                return None
        del self.candidates[peer]
        self.asked.add(peer)
        return peer


class KadDht:
    """See `protocol.transport.base.Dht`."""

    def __init__(
        self, server: KadServer, open_stream: StreamOpener, addrs: tuple[str, ...], rule: DhtValidator
    ) -> None:
        self._server = server
        self._open_stream = open_stream
        self._addrs = addrs
        self._rule = rule
        self._self = server.local_peer_id

    async def provide(self, key: str) -> None:
        """Tell the nodes nearest to `key` that this peer provides it."""
        encoded = _provider_key(key)
        request = Message(type=Message.MessageType.ADD_PROVIDER, key=encoded)
        provider = request.providerPeers.add()
        provider.id = self._self.to_bytes()
        provider.addrs.extend(Multiaddr(addr).to_bytes() for addr in self._addrs)
        await self._store(encoded, Message(type=Message.MessageType.GET_PROVIDERS, key=encoded), request)

    async def providers(self, key: str, limit: int = 20) -> list[PeerAddrs]:
        """Peers other than this one that provide `key`, those named by most nodes first."""
        encoded = _provider_key(key)
        found: dict[ID, dict[str, None]] = {}
        named: dict[ID, int] = {}

        def note(response: Message) -> bool:
            for provider in response.providerPeers:
                peer = ID(provider.id)
                if peer != self._self:
                    named[peer] = named.get(peer, 0) + 1
                    found.setdefault(peer, {}).update(dict.fromkeys(_readable(provider.addrs)))
            return len(found) >= limit

        for info in self._server.provider_store.get_providers(encoded):
            if info.peer_id != self._self:
                named[info.peer_id] = 1
                addresses = _readable(addr.to_bytes() for addr in info.addrs)
                found.setdefault(info.peer_id, {}).update(dict.fromkeys(addresses))
        request = Message(type=Message.MessageType.GET_PROVIDERS, key=encoded)
        await self._lookup(encoded, request, note)
        ranked = sorted(found, key=lambda peer: -named[peer])[:limit]
        return [_peer_addrs(peer, found[peer]) for peer in ranked]

    async def put(self, key: str, value: bytes) -> None:
        """Store `value` under `key` at the peers nearest to it. Raises: LocalProtocolError, if it is not valid."""
        encoded = _value_key(key)
        try:
            self._rule.validate(key, value)
        except RemoteProtocolError as error:
            raise LocalProtocolError(f"this value may not stand under {key!r}: {error}") from error
        if self._server.is_server:
            self._server.keep(encoded, value)
        request = Message(type=Message.MessageType.PUT_VALUE, key=encoded)
        request.record.key = encoded
        request.record.value = value
        await self._store(encoded, Message(type=Message.MessageType.GET_VALUE, key=encoded), request)

    async def get(self, key: str) -> bytes | None:
        """The newest valid value found under `key`; what this node stores for others is one voice of many."""
        encoded = _value_key(key)
        best: list[bytes] = []
        valid = 0

        def note(response: Message) -> bool:
            nonlocal valid
            if response.HasField("record") and self._is_valid(key, response.record.value):
                valid += 1
                self._keep_newest(best, response.record.value)
            return valid >= DHT_GET_QUORUM

        await self._lookup(encoded, Message(type=Message.MessageType.GET_VALUE, key=encoded), note)
        stored = self._server.value_store.get(encoded)
        if stored is not None and self._is_valid(key, stored.value):
            self._keep_newest(best, stored.value)
        return best[0] if best else None

    def learn(self, peer: str, addrs: Sequence[str]) -> None:
        """Note where `peer` may be reached."""
        self._server.host.get_peerstore().add_addrs(
            ID.from_base58(peer), [Multiaddr(addr) for addr in addrs], DHT_ADDRESS_LIFE_S
        )

    async def try_node(self, peer: str) -> bool:
        """Ask `peer` for the nodes near us, and keep it in the routing table if it answers; True if it did."""
        node = ID.from_base58(peer)
        response = await self._ask(node, self._find_self())
        if response is None:
            return False
        await self._server.routing_table.add_peer(node, skip_server_mode_check=True)
        self._closer(response)
        return True

    async def find_neighbours(self) -> None:
        """Look for ourselves: who is asked on the way is met, identified, and enters the routing table."""
        await self._lookup(self._self.to_bytes(), self._find_self(), lambda response: False)

    # --- inside

    def _find_self(self) -> Message:
        return Message(type=Message.MessageType.FIND_NODE, key=self._self.to_bytes())

    def _is_valid(self, key: str, value: bytes) -> bool:
        try:
            self._rule.validate(key, value)
        except RemoteProtocolError as error:
            logger.debug("invalid value under %r: %s", key, error)
            return False
        return True

    def _keep_newest(self, best: list[bytes], value: bytes) -> None:
        if not best or self._rule.newer(value, best[0]):
            best[:] = [value]

    async def _store(self, key: bytes, question: Message, request: Message) -> None:
        """Send `request` to the nodes that `question` finds nearest to `key`."""
        nearest = await self._lookup(key, question, lambda response: False)
        async with trio.open_nursery() as nursery:
            for peer in nearest[:DHT_REPLICAS]:
                nursery.start_soon(self._ask, peer, request)

    async def _lookup(self, key: bytes, request: Message, note: Callable[[Message], bool]) -> list[ID]:
        """Ask ever nearer nodes until the nearest k have answered or `note` has enough; the nearest first."""
        lookup = _Lookup(_position(key))
        for known in self._server.routing_table.find_local_closest_peers(key, DHT_REPLICAS):
            lookup.add(known)
        changed = trio.Event()
        running = 0
        enough = False

        async def ask(peer: ID) -> None:
            nonlocal running, enough
            try:
                response = await self._ask(peer, request)
                if response is not None:
                    lookup.answered[peer] = _position(peer.to_bytes()) ^ lookup.target
                    for closer in self._closer(response):
                        lookup.add(closer)
                    enough = note(response) or enough
            finally:
                running -= 1
                changed.set()

        with trio.move_on_after(DHT_LOOKUP_TIMEOUT_S):
            async with trio.open_nursery() as nursery:
                while not enough:
                    while running < DHT_CONCURRENCY and (peer := lookup.next()) is not None:
                        running += 1
                        nursery.start_soon(ask, peer)
                    if not running:
                        break
                    changed = trio.Event()
                    await changed.wait()
                nursery.cancel_scope.cancel()
        return sorted(lookup.answered, key=lookup.answered.__getitem__)

    def _closer(self, response: Message) -> list[ID]:
        """The nodes a response names, their addresses noted."""
        peers = []
        for named in response.closerPeers[:DHT_REPLICAS]:
            peer = ID(named.id)
            if peer != self._self:
                addrs = _readable(named.addrs)
                if addrs:
                    self.learn(peer.to_base58(), addrs)
                peers.append(peer)
        return peers

    def _addrs_of(self, peer: ID) -> list[str]:
        try:
            addrs = self._server.host.get_peerstore().addrs(peer)
        except PeerStoreError:  # unknown, or known for too long
            info = self._server.routing_table.get_peer_info(peer)
            addrs = info.addrs if info is not None else []
        return [str(addr) for addr in addrs]

    async def _ask(self, peer: ID, request: Message) -> Message | None:
        """The answer to one question, or None; who does not answer leaves the routing table."""
        stream: Stream | None = None
        try:
            with trio.fail_after(DHT_QUERY_TIMEOUT_S):
                stream = await self._open_stream(peer.to_base58(), self._addrs_of(peer), KAD)
                await write_message(stream, request)
                await stream.finish()
                return await read_message(stream)
        except (PeerUnavailable, RemoteProtocolError, LocalProtocolError, trio.TooSlowError) as error:
            logger.debug("DHT node %s did not answer: %s", peer, error)
            self._server.routing_table.remove_peer(peer)
            return None
        finally:
            if stream is not None:
                stream.reset()


def _position(key: bytes) -> int:
    return int.from_bytes(hashlib.sha256(key).digest(), "big")


def _provider_key(key: str) -> bytes:
    """Provider keys are multihashes everywhere in libp2p: SHA-256 of the text."""
    return b"\x12\x20" + hashlib.sha256(key.encode()).digest()


def _value_key(key: str) -> bytes:
    encoded = key.encode()
    if not 0 < len(encoded) <= DHT_MAX_KEY:
        raise LocalProtocolError(f"a DHT key has 1 to {DHT_MAX_KEY} bytes, not {len(encoded)}")
    return encoded


def _readable(addrs: Iterable[bytes]) -> list[str]:
    """The addresses among `addrs` (binary multiaddrs) that this project can dial."""
    texts = []
    for addr in islice(addrs, MAX_DIAL_ADDRS):
        try:
            texts.append(str(parse_address(str(Multiaddr(addr)))))
        except (ConfigError, MultiaddrError, ValueError, TypeError, KeyError):
            continue
    return texts


def _peer_addrs(peer: ID, addrs: Sequence[str] | dict[str, None]) -> PeerAddrs:
    name = peer.to_base58()
    full = dict.fromkeys(str(with_peer(parse_address(addr), name)) for addr in addrs)
    return PeerAddrs(name, tuple(full)[:MAX_DIAL_ADDRS])
