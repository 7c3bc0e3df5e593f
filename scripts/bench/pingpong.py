"""Messages there and back between two processes on loopback, and one large transfer.

    python scripts/bench/pingpong.py [--quick] [--json FILE]

Prints a table; medians and best values say more than means on a machine that does other work too.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from protocol.transport.base import Stream
from protocol.transport.libp2p import open_transport
from protocol.transport.validator import AcceptAll

KIB, MIB = 1024, 1024 * 1024
ECHO, SINK = "/bench/echo/1", "/bench/sink/1"
LISTEN = ("/ip4/127.0.0.1/udp/0/quic-v1",)
SETTLED_DATAGRAM = 16_000  # what the path probing reaches on loopback


async def echo(stream: Stream) -> None:
    """Send back what comes, with as much room as a session has."""
    stream.widen()
    while data := await stream.receive():
        await stream.send(data)


async def sink(stream: Stream) -> None:
    """Take everything, then say how much it was."""
    stream.widen()
    size = 0
    while data := await stream.receive():
        size += len(data)
    await stream.send(size.to_bytes(8, "big"))


async def serve() -> None:
    """The second process: print an address, then answer until standard input ends."""
    async with open_transport(Ed25519PrivateKey.generate(), listen=LISTEN, validate=AcceptAll()) as transport:
        transport.serve(ECHO, echo)
        transport.serve(SINK, sink)
        print(transport.addrs[0], flush=True)
        async with trio.lowlevel.FdStream(os.dup(sys.stdin.fileno())) as commands:
            async for _ in commands:
                pass


async def ping(stream: Stream, size: int) -> float:
    """Seconds for `size` bytes there and back."""
    payload = bytes(size)
    begin = time.perf_counter()
    await stream.send(payload)
    missing = size
    while missing:
        missing -= len(await stream.receive())
    return time.perf_counter() - begin


async def transfer(stream: Stream, size: int) -> float:
    """Seconds until the other process has taken `size` bytes."""
    begin = time.perf_counter()
    await stream.send(bytes(size))
    await stream.finish()
    answer = await stream.receive()
    assert int.from_bytes(answer, "big") == size
    return time.perf_counter() - begin


async def measure(addr: str, quick: bool) -> list[dict[str, object]]:
    """One row for each measurement."""
    peer = addr.rpartition("/")[2]
    rows: list[dict[str, object]] = []
    async with open_transport(Ed25519PrivateKey.generate(), dht="client", validate=AcceptAll()) as transport:
        connection = await transport.connection(peer, [addr])
        stream = await transport.open_stream(peer, [addr], ECHO)
        with trio.move_on_after(5):
            while connection.datagram_size < SETTLED_DATAGRAM:
                await ping(stream, KIB)
        for size, count in ((KIB, 1000), (8 * KIB, 1000), (64 * KIB, 300)):
            times = sorted([await ping(stream, size) for _ in range(count // 10 if quick else count)])
            rows.append(
                {
                    "what": f"{size // KIB} KiB there and back",
                    "best_ms": times[0] * 1e3,
                    "median_ms": statistics.median(times) * 1e3,
                    "p99_ms": times[int(len(times) * 0.99)] * 1e3,
                }
            )
        rates = []
        for _ in range(1 if quick else 5):
            bulk = await transfer(await transport.open_stream(peer, [addr], SINK), 16 * MIB)
            rates.append(16 / bulk)
        rows.append(
            {
                "what": "16 MiB one way",
                "best_mib_s": max(rates),
                "median_mib_s": statistics.median(rates),
                "datagram_bytes": connection.datagram_size,
            }
        )
    return rows


@contextmanager
def other_process() -> Iterator[str]:
    """The second process; its address."""
    command = [sys.executable, __file__, "--serve"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        try:
            yield server.stdout.readline().strip()
        finally:
            server.stdin.close()


def main() -> None:
    """Start the second process, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tenth of the samples")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        trio.run(serve)
        return
    with other_process() as addr:
        rows = trio.run(measure, addr, options.quick)
    for row in rows:
        figures = (f"{name} {value:8.2f}" for name, value in row.items() if isinstance(value, float))
        print(f"{row['what']:24}", "  ".join(figures))
    if options.json:
        summary = {
            "8_kib_median_ms": rows[1]["median_ms"],
            "bulk_median_mib_s": rows[-1]["median_mib_s"],
        }
        options.json.write_text(json.dumps({"summary": summary, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
