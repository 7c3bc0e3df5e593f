"""A swarm of real node processes on this machine, for tests and benchmarks."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from swarm.cli.node_process import Told, node_command, told
from tests.support.processes import Process, Processes

READY_S = 90.0  # importing torch and transformers on a busy machine
LOOPBACK = "/ip4/127.0.0.1/udp/0/quic-v1"


def wait_for_news(process: Process, name: str, within_s: float = READY_S) -> Told:
    """The first event of this name that a node tells. Raises: AssertionError, as `Process.wait_for`."""

    def find(line: str) -> Told | None:
        news = told(line)
        return news if news is not None and news.name == name else None

    return process.wait_for(find, f"the event {name!r}", within_s)


@dataclass(frozen=True, slots=True)
class Own:
    """What a node has of its own, beside what all of its swarm have: options, and variables of its environment."""

    options: Sequence[str] = ()
    env: Mapping[str, str] = field(default_factory=dict)


NOTHING_OWN = Own()


@dataclass(frozen=True, eq=False)
class RunningNode:
    """A node that serves."""

    process: Process
    peer: str
    addr: str
    layers: str
    own: Own = NOTHING_OWN

    @property
    def said(self) -> list[str]:
        """Its lines as people read them."""
        return [news.text if (news := told(line)) else line for line in self.process.lines]

    @property
    def running(self) -> bool:
        """Whether its process has not ended."""
        return self.process.returncode is None


class LocalSwarm:
    """Node processes of one checkpoint; the first started is the one that others join. Ends with `processes`."""

    def __init__(self, processes: Processes, model: Path, home: Path, *, extra: Sequence[str] = ()) -> None:
        self.nodes: list[RunningNode] = []
        self._processes = processes
        self._model = model
        self._home = home
        self._extra = list(extra)

    @property
    def join(self) -> str:
        """The address of the first node."""
        return self.nodes[0].addr

    def start(self, *layers: str, own: Own = NOTHING_OWN) -> list[RunningNode]:
        """Start nodes of these layers ("0:4") and wait until all serve."""
        started: list[RunningNode] = []
        if not self.nodes:
            started += self._ready([(self.spawn(layers[0], own=own), layers[0], own)])
            layers = layers[1:]
        join = (self.nodes or started)[0].addr
        started += self._ready([(self.spawn(each, join, own=own), each, own) for each in layers])
        self.nodes += started
        return started

    def spawn(
        self,
        layers: str,
        *join: str,
        home: Path | None = None,
        listen: str = LOOPBACK,
        own: Own = NOTHING_OWN,
    ) -> Process:
        """A node that has just been started."""
        number = sum(1 for _ in self._home.glob("node-*"))
        home = home or self._home / f"node-{number}"
        home.mkdir(parents=True, exist_ok=True)
        argv = node_command(
            self._model, layers, home=home, listen=listen, join=join, options=[*self._extra, *own.options]
        )
        return self._processes.start(argv, env=own.env, name=f"node {layers}")

    def restart(self, *dead: RunningNode) -> list[RunningNode]:
        """Processes in the place of dead ones, all at once: same keys, same ports, same layers."""
        living = [other.addr for other in self.nodes if other not in dead and other.running]
        places = [self.nodes.index(node) for node in dead]
        spawned = []
        for index, node in zip(places, dead, strict=True):
            listen = re.sub(r"/p2p/.*", "", node.addr)
            home = self._home / f"node-{index}"
            process = self.spawn(node.layers, *living, home=home, listen=listen, own=node.own)
            spawned.append((process, node.layers, node.own))
        ready = self._ready(spawned)
        for index, node in zip(places, ready, strict=True):
            self.nodes[index] = node
        return ready

    def _ready(self, spawned: Sequence[tuple[Process, str, Own]]) -> list[RunningNode]:
        ready = []
        for process, layers, own in spawned:
            fields = wait_for_news(process, "ready").fields
            ready.append(RunningNode(process, fields["peer"], fields["addrs"][0], layers, own))
        return ready
