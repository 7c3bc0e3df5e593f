"""A UDP port and its end, whatever it is doing then."""

from __future__ import annotations

import errno
import socket

import pytest
import trio

from protocol.transport.quic.port import Batch, Port
from protocol.transport.quic.udp import SendError

HOST = "127.0.0.1"


class Full(socket.socket):
    """A socket that the system takes nothing from, as when its buffer is full."""

    def sendto(self, *_: object) -> int:
        """Raises: BlockingIOError, always."""
        raise BlockingIOError(errno.EAGAIN, "full")


def ignore(port: Port, batch: Batch, errors: list[SendError]) -> None:
    """Nobody listens."""


@pytest.mark.parametrize("turns", range(6))
async def test_a_port_that_waits_for_room_closes(turns: int) -> None:
    """However far its backlog has come, closing ends it without an error, and once more does nothing."""
    port = Port(HOST, 0, ignore)
    port._socket = Full(fileno=port._socket.detach())
    port._socket.setblocking(False)
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(port.run)
            assert port.send(b"x", (HOST, 9)) == 0
            for _ in range(turns):
                await trio.lowlevel.checkpoint()
            port.close()
            port.close()
    assert port.send(b"x", (HOST, 9)) == errno.EBADF


async def test_a_port_that_was_closed_before_it_ran_ends() -> None:
    """Nobody waits for a socket that is no more."""
    port = Port(HOST, 0, ignore)
    port.send(b"x", (HOST, port.port))
    port.close()
    with trio.fail_after(5):
        await port.run()
