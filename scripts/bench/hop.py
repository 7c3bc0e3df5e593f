"""What a hop costs beside computing: time per token minus the hops' compute times, per hop, on loopback.

    python scripts/bench/hop.py [--quick] [--json FILE]

Node processes serve a small random Llama (hidden 896, so that what travels is of a real model's size); a thin client
decodes greedily through 1, 2 and 4 of them. Beside it, messages of the same size there and back over the same
endpoint between two processes: a hop costs at least half of that.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

import trio
from common import SMALL, arguments, forget_torch, local_swarm, report, spans
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pingpong import ECHO, other_process, ping

import swarm
from protocol.transport.libp2p import open_transport
from protocol.transport.validator import AcceptAll
from swarm.session.session import Session

PROMPT = [1, 2, 3, 4, 5, 6, 7, 8]
WARM_UP = 20


async def overheads(session: Session, tokens: int) -> list[float]:
    """Milliseconds per hop and token that no hop computed in."""
    found: list[tuple[int, float]] = []
    feed = PROMPT
    for _ in range(tokens):
        begin = time.perf_counter()
        candidates = await session.step(feed)
        total_ms = 1000 * (time.perf_counter() - begin)
        found.append((session.steps - 1, total_ms))
        feed = [int(candidates.ids[0, 0])] if candidates is not None else PROMPT[:1]
    await trio.sleep(0.2)  # the last acknowledgements arrive after the last token
    computed: dict[int, float] = {}
    for hop in session.hops:
        for cost in hop.costs:
            computed[cost.number] = computed.get(cost.number, 0.0) + cost.compute_ms
    hops = len(session.hops)
    return [(total_ms - computed[number]) / hops for number, total_ms in found[WARM_UP:]]


async def through(addr: str, hops: int, tokens: int) -> list[float]:
    """The overheads over a route of `hops`."""
    async with (
        swarm.connect(addr, remember=False) as client,
        client.session(max_tokens=tokens + len(PROMPT) + 1) as session,
    ):
        assert len(session.hops) == hops, session.route
        return await overheads(session, tokens)


async def raw_round_trips(addr: str, size: int, count: int) -> list[float]:
    """Seconds for messages of `size` bytes there and back."""
    peer = addr.rpartition("/")[2]
    key = Ed25519PrivateKey.generate()
    async with open_transport(key, dht="client", validate=AcceptAll()) as transport:
        stream = await transport.open_stream(peer, [addr], ECHO)
        return [await ping(stream, size) for _ in range(WARM_UP + count)][WARM_UP:]


def main() -> None:
    """Measure and print."""
    parser = arguments(__doc__ or "")
    options = parser.parse_args()
    tokens = 150 if options.quick else 600
    rows, per_hop = [], []
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "random"
        SMALL.write(model)
        forget_torch()
        for nodes in (1, 2, 4):
            with local_swarm(model, spans(SMALL.layers, nodes), ["--threads", "1"]) as running:
                found = trio.run(through, running.join, nodes, tokens)
            rows.append(row(f"{nodes} hop{'s' * (nodes > 1)}, per hop", found))
            per_hop += found
    with other_process() as addr:
        round_trips = trio.run(raw_round_trips, addr, 4 * SMALL.hidden, tokens)
    rows.append(row("raw there and back, same size", [1000 * seconds for seconds in round_trips]))
    summary = {
        "overhead_ms_median": statistics.median(per_hop),
        "overhead_ms_p99": quantile(per_hop, 0.99),
        "overhead_ms_best": min(per_hop),
        "ping_ms_median": float(rows[-1]["median_ms"]),
    }
    report(summary, rows, options.json)


def row(what: str, values_ms: list[float]) -> dict[str, object]:
    """A line of the table."""
    return {
        "what": what,
        "best_ms": min(values_ms),
        "median_ms": statistics.median(values_ms),
        "p99_ms": quantile(values_ms, 0.99),
    }


def quantile(values: list[float], share: float) -> float:
    """The value that `share` of all lie below."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


if __name__ == "__main__":
    main()
