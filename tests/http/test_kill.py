"""A node killed with kill -9 while it computes an answer that is asked by HTTP."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

import swarm
from swarm.cli.demo_nodes import shipped_model
from swarm.client import Client
from swarm.events import OnEvent
from swarm.http.serve import serve
from swarm.portal import Portal
from tests.http.swarm import ANYWHERE, Api
from tests.http.test_swarm import frames
from tests.support.local_swarm import LocalSwarm
from tests.support.processes import Processes

pytestmark = pytest.mark.net

ASK = {
    "messages": [{"role": "user", "content": "Count from 3 to 40."}],
    "temperature": 0,
    "max_tokens": 60,
    "stream": True,
    "swarm": {"events": True},
}


@pytest.fixture
def nodes(processes: Processes, tmp_path: Path) -> LocalSwarm:
    """A way through, and somebody to take the place of its second half."""
    found = LocalSwarm(processes, shipped_model(), tmp_path, extra=["--kv-tokens", "4096"])
    found.start("0:4", "4:8", "4:8")
    return found


@pytest.fixture
def served(nodes: LocalSwarm) -> Iterator[Api]:
    """The API over them."""

    @asynccontextmanager
    async def enter(on_event: OnEvent) -> AsyncIterator[Client]:
        async with swarm.connect(nodes.join, remember=False, wait_s=10, on_event=on_event) as client:
            yield client

    with Portal() as portal, serve(portal, enter, ANYWHERE) as serving:
        found = Api(serving, portal)
        found.wait_joined()
        yield found


def test_the_answer_goes_on_as_if_nothing_had_happened(nodes: LocalSwarm, served: Api) -> None:
    """The same text, token for token; and the stream says who was lost and who took over."""
    with served.client() as client:
        expected = text_of(list(frames(client.post("/v1/chat/completions", json=ASK))))
        with client.stream("POST", "/v1/chat/completions", json=ASK) as said:
            lost = said.headers["x-swarm-route"].rpartition(", ")[2].split()[0]
            told = frames(said)
            seen = [next(told) for _ in range(6)]
            dead = next(node for node in nodes.nodes if node.peer == lost)
            os.kill(dead.process.pid, signal.SIGKILL)
            seen += told
        assert text_of(seen) == expected
        events = [each["swarm"]["event"] for each in seen if "event" in each.get("swarm", {})]
        [rerouted] = [event for event in events if event["kind"] == "rerouted"]
        assert rerouted["lost"] == lost
        assert set(rerouted["replacements"]) == {nodes.nodes[1].peer, nodes.nodes[2].peer} - {lost}


def text_of(chunks: list[dict]) -> str:  # type: ignore[type-arg]
    """What a stream says."""
    return "".join(each["choices"][0]["delta"].get("content", "") for each in chunks)
