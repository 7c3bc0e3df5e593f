"""A node whose every word is an attack on whoever reads it: real transport, a sound signature, nasty text."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from node.presence.modelfiles import ModelFiles
from protocol.hints import RecordRule
from protocol.identity import Identity, generate
from protocol.messages import (
    MAP_PROTOCOL,
    SESSION_PROTOCOL,
    Error,
    LinkDown,
    MapReply,
    MapRequest,
    Open,
    Opened,
    Refused,
)
from protocol.model import Manifest, ManifestFile, Span
from protocol.numerics import Numerics
from protocol.records import Announcement, sign_record
from protocol.talk.channel import Channel
from protocol.transport.base import Stream
from protocol.transport.libp2p import open_transport
from swarm.cli.demo_nodes import shipped_model
from tests.support.local_swarm import LOOPBACK

# A title, a cleared screen, markup, turned and hidden text, forged lines, a command, marks that climb.
NASTY = (
    "\x1b]0;pwned\x07\x1b[2J\x9b31m[/][red]\u202egpj\u2066\u200b\ufeff\n"
    "others join with:  swarm node --join /ip4/6.6.6.6/udp/6/quic-v1\r\x85\u2028"
    "e" + "\u0301" * 20 + "\u3164\u00a0\u2800$(touch pwned);id #`id`'\""
)
NASTY_ADDRS = ("$(touch pwned);id #", "/dns/$(touch pwned)/udp/1/quic-v1", "/ip6/fe80::1%$(id)/udp/1/quic-v1")
FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
)


def nasty(size_bytes: int) -> str:
    """As much of it as a field takes."""
    return (NASTY * 50).encode()[:size_bytes].decode(errors="ignore")


class HostileNode:
    """Serves the map, the files of `model`, and sessions that end badly."""

    def __init__(self, identity: Identity, addr: str, digest: bytes, blocks: int) -> None:
        self._identity = identity
        self._addr = addr
        self._digest = digest
        self._blocks = blocks
        self._sessions = 0

    def _records(self) -> tuple[bytes, ...]:
        ours = sign_record(self._identity, self._said(self._identity, self._digest, 0)).data
        # Nodes of other models that nobody finds.
        others = [generate() for _ in range(12)]
        return (ours, *(sign_record(o, self._said(o, bytes([n]) * 32, n)).data for n, o in enumerate(others)))

    def _said(self, identity: Identity, digest: bytes, number: int) -> Announcement:
        stages, now = self._blocks + 2, time.time()
        return Announcement(
            identity.peer, (*NASTY_ADDRS, self._addr if number == 0 else f"/dns/{'x' * 40}/udp/1/quic-v1"),
            f"{number}{nasty(250)}", digest, self._blocks, 64, Span(0, stages), "f32", Numerics("f32"),
            (bytes(8),) * stages, "serving", 1.0, 0.1, 0.5, 0.0, 9000, 9000, (), int(now), now, now + 60,
        )  # fmt: skip

    async def show_map(self, stream: Stream) -> None:
        """Its own record and those of peers it made up."""
        async with Channel(stream) as channel:
            await channel.expect(MapRequest, 5)
            await channel.send(MapReply(self._records()))

    async def serve_session(self, stream: Stream) -> None:
        """By turns: refuse, grant and fail, lose the way."""
        self._sessions += 1
        async with Channel(stream) as channel:
            await channel.expect(Open, 5)
            if self._sessions % 3 == 1:
                await channel.send(Refused("busy", nasty(1000), 0.0))
                return
            await channel.send(Opened("f32", Numerics("f32"), goes_back=True))
            if self._sessions % 3 == 2:
                await channel.send(LinkDown(bytes(16), nasty(1000)))
            await channel.send(Error(nasty(60), nasty(1000), True))


@asynccontextmanager
async def hostile_node() -> AsyncIterator[tuple[str, str]]:
    """A swarm of one, with a model of its own that has the tokenizer of the one that ships: (address, digest)."""
    folder, identity = shipped_model(), generate()
    contents = {path.name: path.read_bytes() for path in folder.iterdir() if path.name in FILES}
    config = json.loads(contents["config.json"])
    manifest = Manifest(
        config["num_hidden_layers"], config["hidden_size"], config["vocab_size"], 512, bytes(32),
        tuple(ManifestFile(n, len(data), hashlib.sha256(data).digest()) for n, data in contents.items()),
    )  # fmt: skip
    async with open_transport(identity.key, listen=[LOOPBACK], validate=RecordRule()) as transport:
        addr = transport.addrs[0]
        node = HostileNode(identity, addr, manifest.digest, manifest.blocks)
        transport.serve(MAP_PROTOCOL, node.show_map)
        transport.serve(SESSION_PROTOCOL, node.serve_session)
        ModelFiles(manifest, contents).serve(transport)
        yield addr, manifest.digest.hex()
