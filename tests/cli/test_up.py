"""Nodes and an API started by one command: `swarm up`, and `swarm node --http`."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from protocol.errors import ConfigError
from swarm.cli import local
from swarm.cli.children import FIRST_PAUSE_S, Restarts
from swarm.cli.demo_layout import Weights
from swarm.cli.demo_nodes import shipped_model
from swarm.cli.local_nodes import reached_at, with_port
from swarm.cli.up_options import UpOptions, plan
from tests.support.local_swarm import LOOPBACK, wait_for_news
from tests.support.processes import Process, Processes
from tests.support.waiting import block_until

QUESTION = "What is the capital of France?"
SECRET = "Xyzzy-plugh-4711"
STAGES = {"none": [10, *[10] * 8, 10], "int8": [3] * 10}


def asked(url: str, question: str = QUESTION) -> httpx.Response:
    """What an API says."""
    body = {"messages": [{"role": "user", "content": question}], "temperature": 0}
    return httpx.post(f"{url}/v1/chat/completions", json=body, timeout=30)


def running(pid: int) -> bool:
    """Whether a process lives."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


def children(pid: int) -> list[int]:
    """The processes that a process has started."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return [int(child) for task in tasks for child in (task / "children").read_text().split()]


@contextmanager
def told_to(processes: Processes, home: Path, *words: str) -> Iterator[Process]:
    """A command that goes on, and that ends by Ctrl-C without leaving a process behind."""
    command = [sys.executable, "-m", "swarm", *words, "--port", "0"]
    process = processes.start(command, env={"SWARM_HOME": str(home)}, name=words[0])
    yield process
    started = children(process.pid)
    assert started
    process.signal(signal.SIGINT)
    assert process.wait(20) == 0
    block_until(lambda: not any(running(pid) for pid in started), 10)


@pytest.mark.net
def test_up_starts_all_and_starts_again_what_dies(processes: Processes, tmp_path: Path) -> None:
    """It answers, says how to join, outlives kill -9 of its node, and notes no word of what was asked."""
    words = ("--listen", LOOPBACK, "--log-json", "-v", "-v")
    with told_to(processes, tmp_path, "up", *words) as up:
        url = wait_for_news(up, "listening").fields["url"]
        assert httpx.get(f"{url}/health").json()["joined"] is False
        assert wait_for_news(up, "openai").fields["base_url"] == f"{url}/v1"
        door = wait_for_news(up, "join").text
        assert door.startswith("others join with:  swarm node --join /ip4/127.0.0.1/udp/")
        block_until(lambda: httpx.get(f"{url}/health").json()["joined"], 30)
        assert "Paris" in asked(url).text
        assert asked(url, SECRET).status_code == 200
        [node] = nodes_of(up)
        os.kill(node, signal.SIGKILL)
        lost = up.wait_for_line(r'"lost"', 30)
        assert "node 1 was ended by SIGKILL; it is started again in 1 s" in lost.string
        block_until(lambda: "Paris" in asked(url).text, 60)
    assert not [line for line in up.lines if SECRET in line]
    assert [line for line in up.lines if '"level": "info"' in line and "answered " in line]


def nodes_of(up: Process) -> list[int]:
    """Those of its children that are nodes; another is the process of the text."""
    return [pid for pid in children(up.pid) if b"\0node\0" in Path(f"/proc/{pid}/cmdline").read_bytes()]


@pytest.mark.net
def test_a_node_serves_the_api_beside_it(processes: Processes, tmp_path: Path) -> None:
    """In a process that is started again when it dies, and that ends with the node."""
    words = ("node", "--model", str(shipped_model()), "--listen", LOOPBACK, "--http", "--json")
    with told_to(processes, tmp_path, *words) as node:
        url = wait_for_news(node, "listening").fields["url"]
        block_until(lambda: httpx.get(f"{url}/health").json()["joined"], 30)
        assert "Paris" in asked(url).text
        [api] = children(node.pid)
        os.kill(api, signal.SIGKILL)
        assert "the API was ended by SIGKILL" in wait_for_news(node, "lost").text
        node.wait_for(lambda line: line if '"listening"' in line and url not in line else None, "again", 30)


def test_what_ends_is_started_again_a_few_times() -> None:
    """After pauses that double; what has held for long may fail again."""
    restarts = Restarts(most=3, within_s=100.0)
    assert [restarts.pause_s(at) for at in (0.0, 1.0, 2.0)] == [FIRST_PAUSE_S * n for n in (1, 2, 4)]
    assert restarts.pause_s(3.0) is None
    assert restarts.pause_s(101.5) == FIRST_PAUSE_S * 2


def test_a_place_of_a_node_has_a_port() -> None:
    """A free one, unless it was named; and this machine reaches it."""
    place = with_port("/ip4/0.0.0.0/udp/0/quic-v1")
    assert "/udp/0/" not in place
    assert reached_at(place) == place.replace("0.0.0.0", "127.0.0.1")
    assert with_port("/ip4/127.0.0.1/udp/4001/quic-v1") == "/ip4/127.0.0.1/udp/4001/quic-v1"
    with pytest.raises(ConfigError, match=r"192\.0\.2\.77 is no address of this machine"):
        with_port("/ip4/192.0.2.77/udp/0/quic-v1")


@pytest.mark.parametrize(
    ("words", "room", "layers", "quant"),
    [
        ({}, 1000, [(0, 8)], None),
        ({}, 50, [(0, 8)], "int8"),
        ({"nodes": 2}, 1000, [(0, 8), (0, 8)], None),
        ({}, 20, [None], "auto"),
        ({"max_memory": "40"}, 1000, [(0, 8)], "int8"),
        ({"join": ["ADDRESS"]}, 1000, [None], "auto"),
    ],
    ids=str,
)
def test_nodes_get_what_there_is_memory_for(
    words: dict[str, object],
    room: int,
    layers: list[tuple[int, int] | None],
    quant: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All on one if that fits, in the most precise way; else what fits, and others have the rest."""
    monkeypatch.setattr(local, "weights", lambda model: Weights(model, STAGES, room))
    found = plan(UpOptions(model="some", **words))  # type: ignore[arg-type]
    assert [task.layers for task in found.tasks] == layers
    options = found.tasks[0].options
    assert (options[options.index("--quant") + 1] if "--quant" in options else None) == quant


def test_each_node_has_a_port_for_its_numbers() -> None:
    """The one after that of the node before."""
    assert UpOptions().metrics_of(1) == []
    assert UpOptions(metrics="9464").metrics_of(2) == ["--metrics", "9466"]
    assert UpOptions(metrics="[::1]:0").metrics_of(2) == ["--metrics", "[::1]:0"]
    with pytest.raises(ConfigError, match="9464"):
        UpOptions(metrics="here").check()


def test_one_node_joins_a_swarm() -> None:
    """Several would take the same layers."""
    with pytest.raises(ConfigError, match="leave out --nodes, or --join"):
        UpOptions(join=["ADDRESS"], nodes=2).check()
