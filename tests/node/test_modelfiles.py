"""Model files from a node, as clients fetch them."""

from __future__ import annotations

import hashlib
import random
from dataclasses import replace

import pytest
import trio
from trio.testing import MockClock

from node.presence.modelfiles import STREAMS_BURST, STREAMS_PER_S, ModelFiles
from protocol import limits
from protocol.errors import Lost
from protocol.messages import MODEL_PROTOCOL, Error, FileRequest, ManifestReply, ManifestRequest
from protocol.model import ManifestFile
from protocol.talk.channel import Channel
from protocol.talk.exchange import fetch_model
from protocol.transport.memory.transport import MemoryTransport
from tests.node.conftest import Swarm
from tests.node.fakes import MANIFEST

FILES = {
    "config.json": b"{}",
    "tokenizer.json": random.Random(1).randbytes(3 * limits.FILE_CHUNK_BYTES + 5),
    "empty.txt": b"",
    "exact.bin": bytes(limits.FILE_CHUNK_BYTES),
}
NAMED = replace(
    MANIFEST,
    files=tuple(ManifestFile(n, len(data), hashlib.sha256(data).digest()) for n, data in FILES.items()),
)


async def serving(swarm: Swarm, contents: dict[str, bytes]) -> tuple[MemoryTransport, MemoryTransport]:
    """A node that serves files, and a client."""
    node, client = await swarm.transport(), await swarm.transport()
    ModelFiles(NAMED, contents).serve(node)
    return node, client


async def test_a_client_fetches_everything(swarm: Swarm) -> None:
    """All files, byte for byte, whatever their size."""
    node, client = await serving(swarm, FILES)
    manifest, contents = await fetch_model(client, node.peer, node.addrs, NAMED.digest)
    assert contents == FILES
    assert manifest.encode() == NAMED.encode()


async def test_another_model_is_unknown(swarm: Swarm) -> None:
    """Named as such; another node may have it."""
    node, client = await serving(swarm, FILES)
    channel = Channel(await client.open_stream(node.peer, node.addrs, MODEL_PROTOCOL))
    await channel.send(ManifestRequest(bytes(32)))
    error = await channel.expect(Error, 5)
    assert (error.code, error.elsewhere) == ("unknown_model", True)
    with pytest.raises(Lost, match="unknown_model"):
        await fetch_model(client, node.peer, node.addrs, bytes(32))


@pytest.mark.parametrize("name", ["", "../node.key", "/etc/passwd", "config.json\0"])
async def test_only_named_files_are_given(swarm: Swarm, name: str) -> None:
    """A name is looked up, never opened."""
    node, client = await serving(swarm, FILES)
    channel = Channel(await client.open_stream(node.peer, node.addrs, MODEL_PROTOCOL))
    await channel.send(ManifestRequest(NAMED.digest))
    await channel.expect(ManifestReply, 5)
    await channel.send(FileRequest(name))
    assert (await channel.expect(Error, 5)).code == "unknown_file"


async def test_a_client_that_never_stops_asking(autojump_clock: MockClock, swarm: Swarm) -> None:
    """Is cut off, and may come again later."""
    node, client = await serving(swarm, FILES)
    channel = Channel(await client.open_stream(node.peer, node.addrs, MODEL_PROTOCOL))
    for _ in range(1 + 2 * limits.MODEL_FILES):
        await channel.send(ManifestRequest(NAMED.digest))
        await channel.expect(ManifestReply, 5)
    with pytest.raises(Lost):
        await channel.expect(ManifestReply, 5)
    for _ in range(STREAMS_BURST - 1):
        await fetch_model(client, node.peer, node.addrs, NAMED.digest)
    with pytest.raises(Lost):
        await fetch_model(client, node.peer, node.addrs, NAMED.digest)
    await trio.sleep(1 / STREAMS_PER_S)
    await fetch_model(client, node.peer, node.addrs, NAMED.digest)
