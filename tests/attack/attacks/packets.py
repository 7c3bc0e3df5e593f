"""Bare UDP: packets that begin a handshake and let it hang, and packets that mean nothing."""

from __future__ import annotations

import random
import socket
import ssl

import trio
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection

from protocol.transport.quic.core import VERSIONS
from protocol.transport.quic.identity import ALPN
from tests.attack.stranger import Field, host_and_port

RETRY = 0xF0  # long header, fixed bit, type Retry (RFC 9000, section 17.2.5)
STOCK = 600  # first packets made beforehand: more than a node remembers at any time


def begun() -> tuple[QuicConnection, bytes]:
    """A handshake and its first datagram."""
    configuration = QuicConfiguration(
        alpn_protocols=[ALPN], is_client=True, supported_versions=list(VERSIONS), verify_mode=ssl.CERT_NONE
    )
    connection = QuicConnection(configuration=configuration)
    connection.connect(("127.0.0.1", 1), now=0.0)
    data: bytes = connection.datagrams_to_send(now=0.0)[0][0]
    return connection, data


def first_packet() -> bytes:
    """The first datagram of a handshake that nobody goes on with."""
    return begun()[1]


async def half_open_handshakes(field: Field) -> None:
    """Two hundred handshakes a second are begun at each node, from many ports, and none is ended."""
    stock = [first_packet() for _ in range(STOCK)]
    targets = [host_and_port(node.addrs[0]) for node in field.nodes]
    sockets = [_socket(f"127.0.0.{n % 8 + 20}") for n in range(32)]
    sent = 0
    while True:
        for data in stock:
            for target in targets:
                sockets[sent % len(sockets)].sendto(data, target)
                sent += 1
            await trio.sleep(1 / 200)


async def proven_half_open_handshakes(field: Field) -> None:
    """The same, some dozens a second, by who shows that it receives where it sends from, if asked to."""
    targets = [host_and_port(node.addrs[0]) for node in field.nodes]

    async def one(number: int) -> None:
        while True:
            connection, data = begun()
            with trio.socket.from_stdlib_socket(_socket(f"127.0.0.{40 + number}")) as own:
                await own.sendto(data, targets[number % len(targets)])
                with trio.move_on_after(0.3):
                    answer, source = await own.recvfrom(65_535)
                    if answer[0] & RETRY == RETRY:
                        connection.receive_datagram(answer, source, now=0.0)
                        for again, _ in connection.datagrams_to_send(now=0.0):
                            await own.sendto(again, source)
            await trio.sleep(0.1)

    async with trio.open_nursery() as nursery:
        for number in range(16):
            nursery.start_soon(one, number)


async def rubbish_packets(field: Field) -> None:
    """Random bytes, long and short headers, versions that nobody speaks, two thousand a second."""
    rng = random.Random(1)
    targets = [host_and_port(node.addrs[0]) for node in field.nodes]
    out = _socket("127.0.0.30")
    while True:
        for target in targets:
            for first in (0x00, 0x40, 0xC0, 0xE0, 0xFF):
                data = bytes([first]) + rng.randbytes(rng.choice([8, 40, 1199, 1300]))
                out.sendto(data, target)
        await trio.sleep(0.01)


def _socket(host: str) -> socket.socket:
    out = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    out.setblocking(False)
    out.bind((host, 0))
    return out


ATTACKS = (half_open_handshakes, proven_half_open_handshakes, rubbish_packets)
