"""A whole swarm on this machine: real node processes over real sockets.

Knows how to start and end nodes, as any user would: by the `swarm node` command.
"""

from __future__ import annotations

import contextlib
import os
import queue
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Final

from protocol.errors import ConfigError, SwarmError
from protocol.keyfile import load_or_create
from protocol.model import Span
from swarm.cli.demo_layout import Layout
from swarm.cli.node_process import Told, node_command, told

# A node loads torch and the model; on a machine that is busy with others that takes its time, and all the more of a
# large model: each has to read its part.
READY_WITHIN_S: Final = 120.0
READ_BYTES_S: Final = 20e6
# After SIGTERM a node says goodbye within about two seconds.
LEAVE_WITHIN_S: Final = 5.0
LOG_LINES: Final = 15


class DemoFailed(SwarmError):
    """A node of the demo did not come up; the error's notes are what it said last."""


@dataclass(slots=True, eq=False)
class DemoNode:
    """One node process."""

    name: str
    layers: tuple[int, int]
    peer: str
    address: str
    log: Path
    process: subprocess.Popen[bytes]

    @property
    def running(self) -> bool:
        """Whether the process lives."""
        return self.process.poll() is None

    def kill(self) -> None:
        """End it without a goodbye, as a power cut would."""
        self.process.kill()
        self.process.wait()

    def last_words(self) -> list[str]:
        """The end of its log."""
        return self.log.read_text(errors="replace").splitlines()[-LOG_LINES:]


def shipped_model() -> Path:
    """The folder of the model in the package. Raises: ConfigError, if it was left out."""
    folder = Path(str(resources.files("swarm"))) / "models" / "tiny"
    if not (folder / "config.json").is_file():
        raise ConfigError("this installation lacks the demo's model (swarm/models/tiny)")
    return folder


class Demo:
    """A running swarm of node processes. Made by `start`."""

    def __init__(self, model: str, home: Path) -> None:
        self.model = model
        self.home = home
        self.nodes: list[DemoNode] = []
        self._news: queue.SimpleQueue[tuple[DemoNode, Told | None]] = queue.SimpleQueue()

    @property
    def names(self) -> dict[str, str]:
        """Peer id -> "node 1" and so on."""
        return {node.peer: node.name for node in self.nodes}

    @property
    def doors(self) -> tuple[str, ...]:
        """The addresses of all nodes."""
        return tuple(node.address for node in self.nodes)

    def launch(self, layout: Layout) -> None:
        """Start a node for each range of layers, all at once; the first is the one that the others join."""
        threads = max(1, (os.cpu_count() or 1) // len(layout.layers))
        options = ["--stop-on-eof", "--threads", str(threads), "--kv-tokens", "8192"]
        if layout.quant != "none":
            options += ["--quant", layout.quant]
        for number, part in enumerate(layout.layers, 1):
            home = self.home / f"node-{number}"
            # The keys are made here, so that names and addresses are known before anybody runs.
            peer = load_or_create(home / "node.key").peer
            place = f"/ip4/127.0.0.1/udp/{_free_port()}/quic-v1"
            command = node_command(
                self.model,
                f"{part[0]}:{part[1]}",
                home=home,
                listen=place,
                join=self.doors[:1],
                options=options,
            )
            log = self.home / f"node-{number}.log"
            process = _start(command, log, self.home)
            node = DemoNode(f"node {number}", part, peer, f"{place}/p2p/{peer}", log, process)
            self.nodes.append(node)
            threading.Thread(target=self._read, args=[node], daemon=True).start()

    def progress(self, within_s: float) -> Iterator[tuple[DemoNode, Told]]:
        """What the nodes tell while they come up, until all are ready. Raises: DemoFailed."""
        deadline = time.monotonic() + within_s
        coming = set(self.nodes)
        while coming:
            try:
                node, news = self._news.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                slow = min(coming, key=lambda node: node.name)
                raise _failed(slow, f"is not ready after {within_s:.0f} s") from None
            if news is None:
                node.process.wait()
                raise _failed(node, "ended while starting")
            if news.name == "ready":
                coming.discard(node)
            yield node, news

    def stop(self) -> None:
        """End all nodes that still run and wait for them; in the end by force."""
        for node in self.nodes:
            if node.running:
                node.process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + LEAVE_WITHIN_S
        for node in self.nodes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                node.process.wait(max(0.0, deadline - time.monotonic()))
            node.kill()

    def _read(self, node: DemoNode) -> None:
        """What a node tells, to `progress` and in words to its log; None when it has ended."""
        assert node.process.stdout is not None
        with node.log.open("ab", buffering=0) as log:
            for line in node.process.stdout:
                news = told(line.decode(errors="replace"))
                log.write(line if news is None else f"{news.text}\n".encode())
                if news is not None:
                    self._news.put((node, news))
        self._news.put((node, None))


@contextmanager
def start(model: str, layout: Layout) -> Iterator[Demo]:
    """Node processes for each range of layers; all have ended when the block has.

    Their folders are removed, except the logs after a failure: the error then says where they are.
    Raises: ConfigError, DemoFailed.
    """
    home = Path(tempfile.mkdtemp(prefix="swarm-demo-"))
    demo = Demo(model, home)
    keep = False
    try:
        demo.launch(layout)
        yield demo
    except DemoFailed as error:
        keep = True
        error.add_note(f"(logs are in {home})")
        raise
    finally:
        demo.stop()
        if not keep:
            shutil.rmtree(home, ignore_errors=True)


def _failed(node: DemoNode, how: str) -> DemoFailed:
    error = DemoFailed(f"{node.name} {how}")
    for line in node.last_words():
        error.add_note(line)
    return error


def replaceable(demo: Demo, used: Sequence[tuple[str, Span]]) -> DemoNode:
    """A node in use whose every layer another node that runs serves too. Raises: ConfigError, if there is none."""
    for peer, _ in sorted(used, key=lambda hop: -len(hop[1])):
        node = next((n for n in demo.nodes if n.peer == peer and n.running), None)
        if node is None:
            continue
        others = [n.layers for n in demo.nodes if n.running and n is not node]
        needed = range(*node.layers)
        if all(any(first <= layer < stop for first, stop in others) for layer in needed):
            return node
    raise ConfigError("no node in use can be spared: nobody else that runs has its layers")


def _start(command: list[str], log: Path, home: Path) -> subprocess.Popen[bytes]:
    # Its standard input is a pipe that nobody writes to: it ends when this process does, however that ends, and the
    # node with it. A session of its own keeps the terminal's Ctrl-C for the chat.
    environment = {**os.environ, "SWARM_HOME": str(home / "config"), "PYTHONUNBUFFERED": "1"}
    environment.pop("SWARM_JOIN", None)
    environment.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    log.touch()
    return subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=environment,
        start_new_session=True,
    )


def _free_port() -> int:
    """A UDP port of the loopback interface that is free now."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
