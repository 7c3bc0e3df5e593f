"""An API over a whole swarm in this process: fake engines, a network in memory, a real HTTP server on loopback."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

import swarm
from protocol.errors import Unreachable
from swarm.client import Client
from swarm.events import OnEvent
from swarm.http.serve import Serving, serve
from swarm.http.settings import Settings
from swarm.portal import Portal
from tests.sim.test_answers import client_in
from tests.sim.world import KV_TOKENS, World, greedy_reference, swarm_of
from tests.support.inprocess import running_nodes
from tests.support.waiting import block_until

ANYWHERE = Settings(port=0)
GREEDY = {"temperature": 0}


@dataclass
class Api:
    """A server, its swarm, and a way to both."""

    serving: Serving
    portal: Portal
    worlds: list[World] = field(default_factory=list)

    @property
    def url(self) -> str:
        """Where it listens."""
        return self.serving.url

    @property
    def address(self) -> tuple[str, int]:
        """The same for sockets."""
        url = httpx.URL(self.url)
        return url.host, url.port or 0

    @property
    def world(self) -> World:
        """The swarm, once it is entered."""
        return self.worlds[-1]

    def client(self, **how: Any) -> httpx.Client:
        """Somebody who asks."""
        return httpx.Client(base_url=self.url, timeout=20, **how)

    def sessions(self) -> int:
        """Sessions that nodes hold."""

        async def count() -> int:
            return sum(len(node.hop) for node in self.world.nodes)

        return self.portal.call(count)

    def steps(self) -> int:
        """Steps that nodes have computed."""
        return sum(len(node.engine.steps) for node in self.world.nodes)

    def wait_joined(self) -> None:
        """Return as soon as it can answer."""
        block_until(lambda: self.serving.service.place.joined, 20)


@contextmanager
def api(
    *spans: tuple[int, int],
    settings: Settings = ANYWHERE,
    step_s: float = 0.0,
    unreachable: int = 0,
    slow: tuple[int, ...] = (),
    prefix_bytes: int = 0,
    kv_tokens: int = KV_TOKENS,
) -> Iterator[Api]:
    """Nodes of these spans (default: two halves) behind an API; the first `unreachable` tries to enter fail."""
    worlds: list[World] = []
    tries = 0

    @asynccontextmanager
    async def enter(on_event: OnEvent) -> AsyncIterator[Client]:
        nonlocal tries
        tries += 1
        if tries <= unreachable:
            raise Unreachable("nobody answers there")
        async with (
            swarm_of(
                *(spans or ((0, 4), (4, 8))),
                latency_s=0.001,
                step_s=step_s,
                slow=slow,
                prefix_bytes=prefix_bytes,
                kv_tokens=kv_tokens,
            ) as world,
            client_in(world, on_event=on_event) as client,
        ):
            worlds.append(world)
            yield client

    with Portal() as portal, serve(portal, enter, settings) as serving:
        found = Api(serving, portal, worlds)
        if not unreachable:
            found.wait_joined()
        yield found


@contextmanager
def real_api(folder: Path, settings: Settings = ANYWHERE) -> Iterator[Api]:
    """Two nodes that compute a checkpoint, over real QUIC, behind an API."""

    @asynccontextmanager
    async def enter(on_event: OnEvent) -> AsyncIterator[Client]:
        async with (
            running_nodes(folder, [(0, 4), (4, 8)]) as addrs,
            swarm.connect(addrs[0], remember=False, on_event=on_event) as client,
        ):
            yield client

    with Portal() as portal, serve(portal, enter, settings) as serving:
        found = Api(serving, portal)
        found.wait_joined()
        yield found


def text_of(api: Api, ids: list[int]) -> str:
    """What the swarm's tokenizer makes of them."""
    joined = api.serving.service.place.joined
    assert joined is not None
    return api.portal.call(joined.text.decode, ids)


def answer_of(api: Api, prompt: list[int], count: int) -> str:
    """The greedy answer of the unsplit model."""
    return text_of(api, greedy_reference(prompt, count))


def run_async(work: Any) -> Any:
    """Asyncio's side of a test, away from the loop of pytest's."""
    return asyncio.run(work)
