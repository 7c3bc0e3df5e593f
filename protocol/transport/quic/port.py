"""A UDP socket in trio: batches in, batches out, the system's error reports."""

from __future__ import annotations

import errno
import socket
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import trio

from protocol.transport.limits import RECEIVE_BATCH, SEND_BACKLOG
from protocol.transport.quic.udp import Addr, SendError, open_udp, read_errors

_LARGEST = 65_535
Batch = list[tuple[bytes, Addr]]


@dataclass(slots=True)
class Passed:
    """Datagrams, and the bytes in them."""

    datagrams: int = 0
    nbytes: int = 0

    def add(self, datagrams: int, nbytes: int) -> None:
        """So many more."""
        self.datagrams += datagrams
        self.nbytes += nbytes


class Port:
    """One bound socket. `run` has to run while it is used; `close` ends it."""

    def __init__(
        self, host: str, port: int, on_batch: Callable[[Port, Batch, list[SendError]], None]
    ) -> None:
        """Raises: OSError, if the address cannot be bound."""
        self._socket = open_udp(host, port)
        self._on_batch = on_batch
        self._backlog: deque[tuple[bytes, Addr]] = deque()
        self._backlogged = trio.Event()
        self._closed = False
        self.sent = Passed()
        self.received = Passed()
        self.host, self.port = self._socket.getsockname()[:2]

    @property
    def is_ipv6(self) -> bool:
        """Whether it speaks IPv6 (and only that)."""
        return self._socket.family == socket.AF_INET6

    def send(self, data: bytes, addr: Addr) -> int:
        """Send at once, or when the kernel has room again; 0, or the error number if it cannot be sent."""
        if self._backlog:
            if len(self._backlog) < SEND_BACKLOG:
                self._backlog.append((data, addr))
            return 0  # beyond the backlog it is lost, which QUIC repairs
        number = self._try_send(data, addr)
        if number in (errno.EAGAIN, errno.ENOBUFS):
            self._backlog.append((data, addr))
            self._backlogged.set()
            return 0
        return number

    async def run(self) -> None:
        """Receive and send until cancelled or closed."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._send_backlog)
            with suppress(trio.ClosedResourceError):
                while not self._closed:
                    await trio.lowlevel.wait_readable(self._socket)
                    self._receive_batch()
            nursery.cancel_scope.cancel()

    def close(self) -> None:
        """Give the port back. What is in the backlog is lost. Safe to call twice, and whatever runs."""
        if self._closed:
            return
        self._closed = True
        self._backlog.clear()
        trio.lowlevel.notify_closing(self._socket)
        self._socket.close()

    def _receive_batch(self) -> None:
        batch: Batch = []
        reported = False
        for _ in range(RECEIVE_BATCH):
            if self._closed:
                return
            try:
                batch.append(self._socket.recvfrom(_LARGEST))
            except BlockingIOError:
                break
            except OSError:
                reported = True  # about an earlier datagram; the error queue tells it in full
        # While there is a report the socket counts as readable: one that nothing has shown comes with an empty batch.
        self.received.add(len(batch), sum(len(data) for data, _ in batch))
        errors = read_errors(self._socket) if reported or not batch else []
        self._on_batch(self, batch, errors)

    def _try_send(self, data: bytes, addr: Addr) -> int:
        if self._closed:
            return errno.EBADF
        number = 0
        for _ in range(2):
            try:
                self._socket.sendto(data, addr)
                self.sent.add(1, len(data))
                return 0
            except OSError as error:
                number = error.errno or errno.EIO
                # ECONNREFUSED is about an earlier datagram, perhaps to somebody else: this one was not sent yet
                if number != errno.ECONNREFUSED:
                    break
        return number

    async def _send_backlog(self) -> None:
        # `close` empties the backlog, so that nobody waits for a socket that is no more; it also wakes whoever does.
        with suppress(trio.ClosedResourceError):
            while True:
                await self._backlogged.wait()
                self._backlogged = trio.Event()
                while self._backlog:
                    await trio.lowlevel.wait_writable(self._socket)
                    while self._backlog:
                        if self._try_send(*self._backlog[0]) in (errno.EAGAIN, errno.ENOBUFS):
                            break
                        self._backlog.popleft()
