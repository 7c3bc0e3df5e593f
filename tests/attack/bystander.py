"""Third parties that have asked for nothing, and the meter of what an attacker spends."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from types import TracebackType

import trio

HOST = "127.0.0.9"
LOCALHOST = "127.0.0.1"  # has a name
DATAGRAM = 65_535
PLACES = 16  # as many as a record may name


class Victim:
    """Plain UDP sockets that count what comes to them and never answer."""

    def __init__(self, places: int = PLACES) -> None:
        self._sockets = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(places)]
        for number, each in enumerate(self._sockets):
            each.bind((HOST if number else LOCALHOST, 0))
            each.setblocking(False)
        self.received = 0

    @property
    def addrs(self) -> list[str]:
        """Multiaddrs of all its sockets."""
        places = [each.getsockname() for each in self._sockets]
        return [f"/ip4/{host}/udp/{port}/quic-v1" for host, port in places]

    @property
    def port(self) -> int:
        """Of the socket at the address that `localhost` names."""
        return int(self._sockets[0].getsockname()[1])

    def count(self) -> int:
        """Bytes received so far."""
        for each in self._sockets:
            while True:
                try:
                    self.received += len(each.recv(DATAGRAM))
                except BlockingIOError:
                    break
        return self.received

    async def keep_counting(self) -> None:
        """So that the kernel's buffers never overflow."""
        while True:
            self.count()
            await trio.sleep(0.02)

    def __enter__(self) -> Victim:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for each in self._sockets:
            each.close()


class Meter:
    """Stands before nodes and passes datagrams on, one socket for each peer that speaks; counts what goes in."""

    def __init__(self) -> None:
        self.sent = 0
        self.addrs: list[str] = []

    async def stand_before(self, nursery: trio.Nursery, addr: str) -> None:
        """Be another address of the node at `addr`."""
        _, _, host, _, port, _, _, peer = addr.split("/")
        front = trio.socket.socket(type=trio.socket.SOCK_DGRAM)
        await front.bind(("127.0.0.1", 0))
        self.addrs.append(f"/ip4/127.0.0.1/udp/{front.getsockname()[1]}/quic-v1/p2p/{peer}")
        nursery.start_soon(self._forward, nursery, front, (host, int(port)))

    async def _forward(
        self, nursery: trio.Nursery, front: trio.socket.SocketType, target: tuple[str, int]
    ) -> None:
        backs: dict[tuple[str, int], trio.socket.SocketType] = {}
        with front:
            while True:
                data, sender = await front.recvfrom(DATAGRAM)
                self.sent += len(data)
                back = backs.get(sender)
                if back is None:
                    back = backs[sender] = trio.socket.socket(type=trio.socket.SOCK_DGRAM)
                    await back.bind(("127.0.0.1", 0))
                    nursery.start_soon(self._backward, front, back, sender)
                await back.sendto(data, target)

    async def _backward(
        self, front: trio.socket.SocketType, back: trio.socket.SocketType, sender: tuple[str, int]
    ) -> None:
        with back:
            while True:
                data, _ = await back.recvfrom(DATAGRAM)
                await front.sendto(data, sender)


@asynccontextmanager
async def metered(addrs: Sequence[str]) -> AsyncIterator[Meter]:
    """A meter before each node of `addrs`."""
    meter = Meter()
    async with AsyncExitStack() as stack:
        nursery = await stack.enter_async_context(trio.open_nursery())
        for addr in addrs:
            await meter.stand_before(nursery, addr)
        yield meter
        nursery.cancel_scope.cancel()
