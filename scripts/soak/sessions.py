"""Short sessions come and go by the thousand, and the nodes' memory stays what it was.

    python scripts/soak/sessions.py [--sessions 10000] [--quant int8|none] [--seed 0] [--json FILE]

Two node processes of the model that ships, and clients whose sessions are opened, given a prompt of any length up to
two pages, rolled back, forked, and ended by a goodbye or without one. The resident memory of the nodes is read when
the first hundred sessions are over, and then at every tenth part of them.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import trio

# The node processes are started by what the tests start them with, which is not installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
# Before torch is imported anywhere: OpenMP threads that spin while they wait starve the other processes.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

import swarm
from protocol.candidates import NOTHING
from swarm.cli.demo_nodes import shipped_model
from tests.attack.arena import memory_of, tracebacks
from tests.support.local_swarm import LocalSwarm
from tests.support.processes import Processes

MIB: Final = 1024 * 1024
LAYERS: Final = ("0:4", "4:8")
# One peer opens 8 a second.
CLIENTS: Final = 12
FIRST: Final = 100
LONGEST: Final = 300  # tokens of a prompt
WAIT_S: Final = 30.0
# What the allocator may keep besides, by its own choice.
SLACK: Final = 8 * MIB


@dataclass
class Log:
    """What happened; `memory_mib`: sessions that were over, and what each node had then."""

    sessions: int = 0
    forks: int = 0
    memory_mib: list[tuple[int, list[float]]] = field(default_factory=list)
    tracebacks: list[str] = field(default_factory=list)

    @property
    def grown_mib(self) -> float:
        """What the node that grew most has more than after the first hundred sessions."""
        first, last = self.memory_mib[0][1], self.memory_mib[-1][1]
        return max(after - before for before, after in zip(first, last, strict=True))

    @property
    def sound(self) -> bool:
        """Whether memory is what it was."""
        return not self.tracebacks and self.grown_mib * MIB <= SLACK

    def summary(self) -> dict[str, float]:
        """In figures."""
        return {"sessions": self.sessions, "forks": self.forks, "grown_mib": self.grown_mib}


async def one_session(client: swarm.Client, rng: random.Random, log: Log) -> None:
    """A session of some steps, and perhaps of forks."""
    length = rng.choice([rng.randint(1, 20), rng.randint(20, LONGEST)])
    prompt = [rng.randrange(256) for _ in range(length)]
    async with client.session(max_tokens=length + 16) as session:
        await session.step(prompt, want=NOTHING)
        await session.step(prompt[:1], position=rng.randint(0, length))
        if rng.random() < 0.3:
            fork = await session.fork(rng.randint(1, session.length))
            log.forks += 1
            await fork.step(prompt[:2])
            if rng.random() < 0.5:
                await session.step(prompt[:1])
            await fork.aclose()
        if rng.random() < 0.2:
            for hop in session.hops:
                hop.channel.stream.reset()
    log.sessions += 1


async def soak(nodes: LocalSwarm, sessions: int, seed: int, progress: Callable[[Log], None]) -> Log:
    """So many sessions, some at a time."""
    log = Log()
    async with AsyncExitStack() as stack:
        clients = [
            await stack.enter_async_context(swarm.connect(nodes.join, wait_s=WAIT_S, remember=False))
            for _ in range(CLIENTS)
        ]

        async def some(client: swarm.Client, rng: random.Random, upto: int) -> None:
            while log.sessions < upto:
                await one_session(client, rng, log)

        marks = [FIRST, *(FIRST + (sessions - FIRST) * part // 10 for part in range(1, 11))]
        for mark in marks:
            async with trio.open_nursery() as nursery:
                for number, client in enumerate(clients):
                    nursery.start_soon(some, client, random.Random(seed + mark + number), mark)
            log.memory_mib.append((log.sessions, [memory_of(node) / MIB for node in nodes.nodes]))
            progress(log)
    log.tracebacks = [line for node in nodes.nodes for line in tracebacks(node)]
    return log


def run(
    sessions: int, seed: int, *, quant: str = "int8", progress: Callable[[Log], None] = lambda log: None
) -> Log:
    """A swarm of its own for it."""
    with tempfile.TemporaryDirectory() as home, Processes() as processes:
        os.environ.setdefault("SWARM_HOME", home)
        extra = ["--threads", "1", "--kv-tokens", "65536", *([] if quant == "none" else ["--quant", quant])]
        nodes = LocalSwarm(processes, shipped_model(), Path(home), extra=extra)
        nodes.start(*LAYERS)
        return trio.run(soak, nodes, sessions, seed, progress)


def main() -> int:
    """Run and print; status 1 if memory grew."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sessions", type=int, default=10_000)
    parser.add_argument("--quant", default="int8")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()

    def progress(log: Log) -> None:
        sessions, memory = log.memory_mib[-1]
        print(f"{sessions:>7} sessions  {'  '.join(f'{mib:.1f} MiB' for mib in memory)}", flush=True)

    log = run(options.sessions, options.seed, quant=options.quant, progress=progress)
    for name, value in log.summary().items():
        print(f"{name:>20}  {value:g}")
    if options.json:
        options.json.write_text(
            json.dumps({"summary": log.summary(), "memory_mib": log.memory_mib}, indent=1)
        )
    return 0 if log.sound else 1


if __name__ == "__main__":
    sys.exit(main())
