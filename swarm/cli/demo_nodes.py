"""A whole swarm on this machine, for the demo: which nodes, with what, and which of them may be killed."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Final

from protocol.errors import ConfigError
from protocol.model import Span
from swarm.cli.children import own_environment
from swarm.cli.demo_layout import Layout
from swarm.cli.local_nodes import LOOPBACK, LocalNode, LocalNodes, NodeFailed, Place, Task, free_port

# A node loads torch and the model; on a machine that is busy with others that takes its time, and all the more of a
# large model: each has to read its part.
READY_WITHIN_S: Final = 120.0
READ_BYTES_S: Final = 20e6
KV_TOKENS: Final = 8192


def shipped_model() -> Path:
    """The folder of the model in the package. Raises: ConfigError, if it was left out."""
    folder = Path(str(resources.files("swarm"))) / "models" / "tiny"
    if not (folder / "config.json").is_file():
        raise ConfigError("this installation lacks the demo's model (swarm/models/tiny)")
    return folder


def launch(nodes: LocalNodes, model: str, layout: Layout, home: Path) -> None:
    """Start a node for each range of layers, all at once."""
    options = [*thread_options(len(layout.layers)), "--kv-tokens", str(KV_TOKENS)]
    if layout.quant != "none":
        options += ["--quant", layout.quant]
    for number, part in enumerate(layout.layers, 1):
        place = Place(f"node {number}", home / f"node-{number}", f"/ip4/{LOOPBACK}/udp/{free_port()}/quic-v1")
        nodes.launch(place, Task(model, part, tuple(options)))


def thread_options(nodes: int) -> tuple[str, ...]:
    """What has so many nodes share this machine's cores."""
    return ("--threads", str(max(1, (os.cpu_count() or 1) // nodes)))


@contextmanager
def start(model: str, layout: Layout) -> Iterator[LocalNodes]:
    """Node processes for each range of layers; all have ended when the block has.

    Their folders are removed, but after a failure: then what each has said lies there, and the error says where.
    Raises: ConfigError, NodeFailed.
    """
    home = Path(tempfile.mkdtemp(prefix="swarm-demo-"))
    demo = LocalNodes(environment=own_environment(SWARM_HOME=str(home / "config")))
    keep = False
    try:
        launch(demo, model, layout, home)
        yield demo
    except NodeFailed as error:
        keep = True
        error.add_note(f"(logs are in {home})")
        for node in demo.nodes:
            (node.place.home / "log").write_text("\n".join(node.child.said))
        raise
    finally:
        demo.stop()
        if not keep:
            shutil.rmtree(home, ignore_errors=True)


def replaceable(demo: LocalNodes, used: Sequence[tuple[str, Span]]) -> LocalNode:
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
