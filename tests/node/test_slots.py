"""Maps and model files over real QUIC, while others hold all the places: an honest client is answered in time.

Everybody is on the loopback address here, so attackers and honest clients are of one origin.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace

import pytest
import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from node.presence.announce import Announcer, Load, Served
from node.presence.modelfiles import STREAMS, ModelFiles
from protocol import limits
from protocol.codec import encode
from protocol.errors import Lost
from protocol.identity import generate
from protocol.messages import MAP_PROTOCOL, MODEL_PROTOCOL, FileRequest, ManifestRequest, MapReply
from protocol.model import ManifestFile, Span
from protocol.numerics import Numerics
from protocol.talk.exchange import exchange_maps, fetch_model
from protocol.transport.base import Stream, Transport
from protocol.transport.libp2p import open_transport
from protocol.transport.slots import PIECE_BYTES
from protocol.transport.validator import AcceptAll
from tests.node.fakes import MANIFEST
from tests.support.waiting import eventually

LOOPBACK = ("/ip4/127.0.0.1/udp/0/quic-v1",)
TOKENIZER = random.Random(1).randbytes(4 * limits.MIB)
FILE = ManifestFile("tokenizer.json", len(TOKENIZER), hashlib.sha256(TOKENIZER).digest())
NAMED = replace(MANIFEST, files=(FILE,))
SERVED = Served(
    "tiny", bytes(32), 6, 8, Span(0, 4), "f32", Numerics("f32"), tuple(bytes([n] * 8) for n in range(4))
)

pytestmark = pytest.mark.net


@asynccontextmanager
async def peer() -> AsyncIterator[Transport]:
    """A peer that only dials."""
    async with open_transport(Ed25519PrivateKey.generate(), validate=AcceptAll(), dht="client") as transport:
        yield transport


@asynccontextmanager
async def node() -> AsyncIterator[tuple[Transport, Announcer, ModelFiles]]:
    """A node that hands out its map and its model's files."""
    identity = generate()
    async with open_transport(identity.key, listen=LOOPBACK, validate=AcceptAll()) as transport:
        announcer = Announcer(identity, transport, rng=random.Random(1))
        announcer.announce(SERVED, Load(kv_tokens=5, kv_tokens_total=9), "serving")
        announcer.serve()
        files = ModelFiles(NAMED, {FILE.name: TOKENIZER})
        files.serve(transport)
        yield transport, announcer, files


@asynccontextmanager
async def strangers(
    target: Transport, protocol: str, first: bytes, peers: int, streams: int
) -> AsyncIterator[list[Stream]]:
    """Streams of `protocol` of several peers, each of which says `first` and then nothing, and reads nothing."""
    async with AsyncExitStack() as stack:
        opened = []
        for _ in range(peers):
            cheat = await stack.enter_async_context(peer())
            for _ in range(streams):
                stream = await cheat.open_stream(target.peer, target.addrs, protocol)
                await stream.send(first)
                opened.append(stream)
        yield opened


async def test_silent_map_streams_lock_nobody_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """More than there are places for say half a request; the map comes to who asks for it, and they give way."""
    monkeypatch.setattr("node.presence.announce.MAPS_ASKED", 8)
    async with (
        node() as (target, announcer, _),
        strangers(target, MAP_PROTOCOL, b"\0\0", peers=4, streams=12) as silent,
        peer() as honest,
    ):
        await eventually(lambda: len(announcer._asked) == 8, 5)
        with trio.fail_after(2):
            records, _ = await exchange_maps(honest, target.peer, target.addrs)
        assert len(records) == 1
        with trio.fail_after(2), pytest.raises(Lost):
            await silent[0].receive()


async def test_idle_model_conversations_lock_nobody_out() -> None:
    """More than there are places for ask for the manifest and then for nothing; the tokenizer comes."""
    ask = encode(ManifestRequest(NAMED.digest))
    async with (
        node() as (target, _, files),
        strangers(target, MODEL_PROTOCOL, ask, peers=6, streams=6),
        peer() as honest,
    ):
        await eventually(lambda: len(files._slots) == STREAMS, 5)
        with trio.fail_after(5):
            _, contents = await fetch_model(honest, target.peer, target.addrs, NAMED.digest)
        assert contents == {FILE.name: TOKENIZER}


async def test_slow_readers_lock_nobody_out() -> None:
    """More than there are places for ask for the tokenizer and take none of it; it comes to who takes it."""
    ask = encode(ManifestRequest(NAMED.digest)) + encode(FileRequest(FILE.name))
    async with (
        node() as (target, _, files),
        strangers(target, MODEL_PROTOCOL, ask, peers=5, streams=5),
        peer() as honest,
    ):
        await eventually(lambda: len(files._slots) == STREAMS, 5)
        with trio.fail_after(10):
            _, contents = await fetch_model(honest, target.peer, target.addrs, NAMED.digest)
        assert contents == {FILE.name: TOKENIZER}


async def test_a_map_is_made_once_for_all_who_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers within a moment share one map, and a new word of our own is in the next."""
    async with node() as (target, announcer, _), peer() as one:
        made = 0
        page = announcer.page

        def counted() -> tuple[bytes, ...]:
            nonlocal made
            made += 1
            return page()

        monkeypatch.setattr(announcer, "page", counted)
        monkeypatch.setattr("node.presence.announce.MAP_FRESH_S", 60.0)
        for _ in range(5):
            await exchange_maps(one, target.peer, target.addrs)
        assert made == 1
        announcer.announce(SERVED, Load(kv_tokens=1, kv_tokens_total=9), "serving")
        records, _ = await exchange_maps(one, target.peer, target.addrs)
        assert announcer.own is not None
        assert records == (announcer.own.data,)


async def test_a_long_request_is_refused_at_its_first_bytes() -> None:
    """Four bytes that announce more than a request may hold end the stream."""
    async with node() as (target, _, _), peer() as cheat:
        for protocol, most in (
            (MAP_PROTOCOL, limits.MAP_REQUEST_BYTES),
            (MODEL_PROTOCOL, limits.FILE_REQUEST_BYTES),
        ):
            stream = await cheat.open_stream(target.peer, target.addrs, protocol)
            await stream.send((most + 1).to_bytes(4, "big"))
            with trio.fail_after(2), pytest.raises(Lost):
                await stream.receive()


async def test_a_large_map_is_sent_in_pieces() -> None:
    """It arrives whole, whatever its size."""
    async with node() as (target, announcer, _), peer() as honest:
        rng = random.Random(1)
        many = tuple(rng.randbytes(1000) for _ in range(40 * PIECE_BYTES // 1000))
        announcer._reply = encode(MapReply(many))
        announcer._reply_at = trio.current_time() + 60
        records, _ = await exchange_maps(honest, target.peer, target.addrs)
        assert records == many
