"""Nodes on this machine, as processes of their own: real ones over real sockets, started as any user would."""

from __future__ import annotations

import queue
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from protocol.errors import ConfigError, SwarmError
from protocol.keyfile import load_or_create
from protocol.transport.addresses import parse_address
from swarm.cli.children import Child, Children
from swarm.cli.node_process import Told, node_command

LOOPBACK: Final = "127.0.0.1"
# Addresses that stand for every interface, and where this machine reaches itself by each.
_EVERYWHERE: Final = {"0.0.0.0": LOOPBACK, "::": "::1"}


class NodeFailed(SwarmError):
    """A node did not come up; the error's notes are what it said last."""


@dataclass(frozen=True, slots=True)
class Place:
    """What a node is known by: its name here, the folder of its key, where it listens."""

    name: str
    home: Path
    listen: str  # with a port that is not 0


@dataclass(frozen=True, slots=True)
class Task:
    """What a node serves; `layers` None: what the swarm lacks most, `model` None: that of the swarm."""

    model: str | None
    layers: tuple[int, int] | None
    options: tuple[str, ...] = ()

    def with_options(self, *more: str) -> Task:
        """The same with these besides."""
        return replace(self, options=(*self.options, *more))


@dataclass(slots=True, eq=False)
class LocalNode:
    """One node process after the other in one place."""

    place: Place
    task: Task
    peer: str
    child: Child

    @property
    def name(self) -> str:
        """What it is called here."""
        return self.place.name

    @property
    def address(self) -> str:
        """Where this machine reaches it."""
        return f"{reached_at(self.place.listen)}/p2p/{self.peer}"

    @property
    def layers(self) -> tuple[int, int]:
        """Which it was told to serve; none, if the choice is its own."""
        return self.task.layers or (0, 0)

    @property
    def running(self) -> bool:
        """Whether its process lives."""
        return self.child.running


class LocalNodes:
    """The nodes of one swarm that run here. All have ended once `stop` has returned."""

    def __init__(self, join: Sequence[str] = (), environment: Mapping[str, str] | None = None) -> None:
        self.nodes: list[LocalNode] = []
        self.children = Children()
        self.on_line: Callable[[str, str], None] = _ignore  # of a node, what it writes that is no event
        self._join = tuple(join)
        self._environment = dict(environment or {})

    @property
    def names(self) -> dict[str, str]:
        """Peer id -> "node 1" and so on."""
        return {node.peer: node.name for node in self.nodes}

    @property
    def doors(self) -> tuple[str, ...]:
        """The addresses of all nodes."""
        return tuple(node.address for node in self.nodes)

    def launch(self, place: Place, task: Task) -> LocalNode:
        """Start a node; the first is the one that the others join."""
        # The key is made here, so that name and address are known before the node runs.
        peer = load_or_create(place.home / "node.key").peer
        join = (*self._join, *self.doors[:1])
        node = LocalNode(place, task, peer, self._start(place, task, join))
        self.nodes.append(node)
        return node

    def relaunch(self, node: LocalNode) -> None:
        """Start one that has ended again, under its name and at its place; it joins those that run."""
        others = [other.address for other in self.nodes if other is not node and other.running]
        node.child = self._start(node.place, node.task, (*self._join, *others))

    def node_of(self, child: Child) -> LocalNode | None:
        """The node whose process this is now."""
        return next((node for node in self.nodes if node.child is child), None)

    def progress(self, within_s: float | None) -> Iterator[tuple[LocalNode, Told]]:
        """What the nodes tell while they come up, until all are ready, or None was put into the news.

        Raises: NodeFailed.
        """
        deadline = None if within_s is None else time.monotonic() + within_s
        coming = {node.child: node for node in self.nodes}
        while coming:
            try:
                left_s = None if deadline is None else max(0.0, deadline - time.monotonic())
                news = self.children.news.get(timeout=left_s)
            except queue.Empty:
                slow = min(coming.values(), key=lambda node: node.name)
                raise failed(slow, f"is not ready after {within_s:.0f} s") from None
            if news is None:
                return
            node = self.node_of(news.child)
            assert node is not None
            if news.ended:
                raise failed(node, f"{news.child.how_it_ended()} while starting")
            if news.line is not None:
                self.on_line(node.name, news.line)
            if news.event is not None:
                if news.event.name == "ready":
                    coming.pop(news.child, None)
                yield node, news.event

    def stop(self) -> None:
        """End all nodes that still run and wait for them; in the end by force."""
        self.children.stop()

    def _start(self, place: Place, task: Task, join: Sequence[str]) -> Child:
        command = node_command(
            task.model,
            None if task.layers is None else f"{task.layers[0]}:{task.layers[1]}",
            home=place.home,
            listen=place.listen,
            join=join,
            options=["--stop-on-eof", *task.options],
        )
        return self.children.start(place.name, command, self._environment)


def failed(node: LocalNode, how: str) -> NodeFailed:
    """The error, with the node's last words."""
    error = NodeFailed(f"{node.name} {how}")
    for line in node.child.last_words():
        error.add_note(line)
    return error


def free_port(host: str = LOOPBACK) -> int:
    """A UDP port that is free now at this address of the machine. Raises: ConfigError, if it is none."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with closing(socket.socket(family, socket.SOCK_DGRAM)) as probe:
            probe.bind((host, 0))
            port: int = probe.getsockname()[1]
            return port
    except OSError as error:
        raise ConfigError(f"{host} is no address of this machine: {error.strerror}") from error


def with_port(listen: str) -> str:
    """An address to listen on, with a free port in place of 0. Raises: ConfigError."""
    place = parse_address(listen)
    return str(place if place.port else replace(place, port=free_port(place.host)))


def reached_at(listen: str) -> str:
    """Where this machine reaches what listens there. Raises: ConfigError."""
    place = parse_address(listen)
    return str(replace(place, host=_EVERYWHERE.get(place.host, place.host)))


def _ignore(_name: str, _line: str) -> None:
    pass
