"""Endpoints, servers and a bad network for the tests of the QUIC endpoint."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from protocol.errors import Lost
from protocol.transport.quic.connection import Connection
from protocol.transport.quic.endpoint import Endpoint, open_endpoint
from protocol.transport.quic.stream import QuicStream
from tests.support.waiting import eventually

HOST = "127.0.0.1"


async def echo(stream: QuicStream) -> None:
    """Send back what comes, then finish."""
    try:
        while data := await stream.receive():
            await stream.send(data)
        await stream.aclose()
    except Lost:
        stream.reset()


async def round_trip(connection: Connection, data: bytes) -> None:
    """Send `data` on a new stream and get it back."""
    stream = await connection.open_stream()
    received = bytearray()

    async def send() -> None:
        await stream.send(data)
        await stream.finish()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        while piece := await stream.receive():
            received += piece
    assert bytes(received) == data
    await stream.aclose()


class Server:
    """An endpoint that runs a handler for each stream."""

    def __init__(self, endpoint: Endpoint, port: int) -> None:
        self.endpoint = endpoint
        self.port = port
        self.connections: list[Connection] = []

    async def first(self) -> Connection:
        """This end of the first connection, once the peer is verified here too."""
        await eventually(lambda: bool(self.connections))
        return self.connections[0]


@asynccontextmanager
async def serving(
    handler: Callable[[QuicStream], Awaitable[None]] = echo,
    identity: Ed25519PrivateKey | None = None,
    idle_timeout_s: float = 30.0,
) -> AsyncIterator[Server]:
    """A server on loopback."""
    identity = identity or Ed25519PrivateKey.generate()
    async with (
        open_endpoint(identity, idle_timeout_s=idle_timeout_s) as endpoint,
        trio.open_nursery() as nursery,
    ):
        server = Server(endpoint, endpoint.bind(HOST, 0).port)

        async def accept(connection: Connection) -> None:
            try:
                while True:
                    nursery.start_soon(handler, await connection.accept_stream())
            except Lost:
                return

        def on_connection(connection: Connection) -> None:
            server.connections.append(connection)
            nursery.start_soon(accept, connection)

        endpoint.on_connection = on_connection
        endpoint.accepting = True
        yield server
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def dialling(idle_timeout_s: float = 30.0, largest_datagram: int = 16_000) -> AsyncIterator[Endpoint]:
    """An endpoint that dials."""
    identity = Ed25519PrivateKey.generate()
    async with open_endpoint(
        identity, idle_timeout_s=idle_timeout_s, largest_datagram=largest_datagram
    ) as endpoint:
        yield endpoint


class Proxy:
    """A UDP middleman that loses, and on demand swallows, datagrams."""

    def __init__(self, target_port: int, rng: random.Random) -> None:
        self._target = (HOST, target_port)
        self._rng = rng
        self.started = trio.Event()
        self.loss = 0.0
        self.largest: int | None = None
        self.silent = False
        self.dropped = 0
        self.passed = 0
        self.port = 0

    def _drops(self, data: bytes) -> bool:
        lost = (
            self.silent
            or (self.largest is not None and len(data) > self.largest)
            or self._rng.random() < self.loss
        )
        self.dropped += lost
        self.passed += not lost
        return lost

    async def run(self) -> None:
        """Serve one client until cancelled."""
        datagram = trio.socket.SOCK_DGRAM
        with trio.socket.socket(type=datagram) as front, trio.socket.socket(type=datagram) as back:
            await front.bind((HOST, 0))
            await back.bind((HOST, 0))
            self.port = front.getsockname()[1]
            client: list[tuple[str, int]] = []

            async def forward() -> None:
                while True:
                    data, addr = await front.recvfrom(65535)
                    client[:] = [addr]
                    if not self._drops(data):
                        await back.sendto(data, self._target)

            async def backward() -> None:
                while True:
                    data, _ = await back.recvfrom(65535)
                    if client and not self._drops(data):
                        await front.sendto(data, client[0])

            async with trio.open_nursery() as nursery:
                nursery.start_soon(forward)
                nursery.start_soon(backward)
                self.started.set()


@asynccontextmanager
async def through_proxy(target_port: int, seed: int = 5) -> AsyncIterator[Proxy]:
    """A proxy before `target_port`."""
    proxy = Proxy(target_port, random.Random(seed))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(proxy.run)
        await proxy.started.wait()
        yield proxy
        nursery.cancel_scope.cancel()
