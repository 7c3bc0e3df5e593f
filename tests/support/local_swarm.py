"""A swarm of real node processes on this machine, for tests and benchmarks."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True, eq=False)
class RunningNode:
    """A node that serves."""

    process: Process
    peer: str
    addr: str
    layers: str

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

    def start(self, *layers: str) -> list[RunningNode]:
        """Start nodes of these layers ("0:4") and wait until all serve."""
        started: list[RunningNode] = []
        if not self.nodes:
            started += self._ready([self.spawn(layers[0])], layers[:1])
            layers = layers[1:]
        started += self._ready([self.spawn(each, self.join) for each in layers], layers)
        return started

    def spawn(self, layers: str, *join: str, home: Path | None = None, listen: str = LOOPBACK) -> Process:
        """A node that has just been started."""
        number = sum(1 for _ in self._home.glob("node-*"))
        home = home or self._home / f"node-{number}"
        home.mkdir(parents=True, exist_ok=True)
        argv = node_command(self._model, layers, home=home, listen=listen, join=join, options=self._extra)
        return self._processes.start(argv, name=f"node {layers}")

    def restart(self, *dead: RunningNode) -> list[RunningNode]:
        """Processes in the place of dead ones, all at once: same keys, same ports, same layers."""
        living = [other.addr for other in self.nodes if other not in dead and other.running]
        places = [self.nodes.index(node) for node in dead]
        spawned = []
        for index, node in zip(places, dead, strict=True):
            listen = re.sub(r"/p2p/.*", "", node.addr)
            home = self._home / f"node-{index}"
            spawned.append(self.spawn(node.layers, *living, home=home, listen=listen))
        ready = self._ready(spawned, [node.layers for node in dead], keep=False)
        for index, node in zip(places, ready, strict=True):
            self.nodes[index] = node
        return ready

    def _ready(
        self, spawned: Sequence[Process], layers: Sequence[str], *, keep: bool = True
    ) -> list[RunningNode]:
        ready = []
        for process, each in zip(spawned, layers, strict=True):
            fields = wait_for_news(process, "ready").fields
            ready.append(RunningNode(process, fields["peer"], fields["addrs"][0], each))
        if keep:
            self.nodes += ready
        return ready
