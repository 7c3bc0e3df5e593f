"""Two hundred sessions at a node process with room for twenty: all come to their end, with the right answers."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import trio

import swarm
from node.compute.interfaces import Call
from node.native import build
from node.native.checkpoint import NativeCheckpoint
from node.native.engine import NativeEngine
from node.native.load import load_kernel
from node.native.precision import F32
from protocol.candidates import Candidates, Want
from protocol.hints import RecordRule
from protocol.identity import generate
from protocol.messages import SESSION_PROTOCOL, Open, Refused
from protocol.model import Span
from protocol.session import Side, StreamState
from protocol.talk.channel import Channel
from protocol.tensors import from_numpy
from protocol.transport.base import Transport
from protocol.transport.libp2p import open_transport
from swarm.cli.demo_nodes import shipped_model
from tests.support.local_swarm import LocalSwarm, RunningNode
from tests.support.processes import Processes

pytestmark = [pytest.mark.net, pytest.mark.timeout(300)]

SESSIONS = 200
ROOM_FOR = 20
MOST_TOKENS = 512
CLIENTS = 10
WAIT_S = 200.0
# Most sessions come to need a second page.
PROMPT, TOKENS = 250, 12
BEST = Want(top=1)


@pytest.fixture(scope="module", autouse=True)
def built() -> None:
    """There have to be kernels."""
    if not build.build():
        pytest.skip("there is no C compiler here, so there are no native kernels to test")


@pytest.fixture
def node(tmp_path: Path) -> Iterator[RunningNode]:
    """All of the model that ships, in fp32."""
    room = ["--kv-tokens", str(ROOM_FOR * MOST_TOKENS)]
    with Processes() as processes:
        nodes = LocalSwarm(processes, shipped_model(), tmp_path, extra=["--threads", "1", *room])
        [node] = nodes.start("0:8")
        yield node
        assert node.running
        assert not any("Traceback" in line for line in node.process.lines)


def prompt_of(number: int) -> list[int]:
    """A prompt that begins like no other's."""
    drawn = np.random.default_rng(number).integers(5, 400, PROMPT - 2).tolist()
    return [5 + number % 100, 5 + number // 100, *drawn]


def answers() -> list[list[int]]:
    """Of all prompts, in order, by an engine in this process."""
    checkpoint = NativeCheckpoint.open(str(shipped_model()), F32)
    engine = NativeEngine.load(checkpoint, Span(0, checkpoint.manifest.stages), load_kernel(1))
    found: list[list[int]] = []
    for start in range(0, SESSIONS, ROOM_FOR):
        caches = [engine.new_cache(engine.span) for _ in range(ROOM_FOR)]
        feeds = [prompt_of(start + place) for place in range(ROOM_FOR)]
        tokens: list[list[int]] = [[] for _ in caches]
        for _ in range(TOKENS):
            calls = [
                Call(cache, cache.length, from_numpy(np.array(feed, np.int32)), BEST)
                for cache, feed in zip(caches, feeds, strict=True)
            ]
            for place, given in enumerate(engine.run(calls)):
                assert isinstance(given, Candidates)
                feeds[place] = [int(given.ids[0, 0])]
                tokens[place] += feeds[place]
        found += tokens
        for cache in caches:
            cache.close()
    return found


@dataclass
class Seen:
    """What came of it, by session, and what somebody heard who asked meanwhile."""

    tokens: dict[int, list[int]] = field(default_factory=dict)
    refused: list[Refused] = field(default_factory=list)


async def decode(client: swarm.Client, number: int, seen: Seen) -> None:
    """One session, from its opening to its end."""
    async with client.session(max_tokens=MOST_TOKENS) as session:
        feed, tokens = prompt_of(number), []
        for _ in range(TOKENS):
            given = await session.step(feed, want=BEST)
            assert given is not None
            feed = [int(given.ids[0, 0])]
            tokens += feed
    seen.tokens[number] = tokens


async def ask_for_room(transport: Transport, node: RunningNode, digest: bytes, seen: Seen) -> None:
    """Twice a second, as one more peer; what is granted is given back."""
    while True:
        stream = await transport.open_stream(node.peer, [node.addr], SESSION_PROTOCOL)
        async with Channel(stream, state=StreamState(Side.OPENER)) as channel:
            await channel.send(Open(secrets.token_bytes(16), digest, Span(0, 10), MOST_TOKENS, None))
            answer = await channel.receive()
            if isinstance(answer, Refused):
                seen.refused.append(answer)
        await trio.sleep(0.5)


async def test_two_hundred_sessions_with_room_for_twenty(node: RunningNode) -> None:
    """All at once, of ten clients. Who is refused meanwhile is told when to come again."""
    seen = Seen()
    async with AsyncExitStack() as stack:
        clients = [
            await stack.enter_async_context(
                swarm.connect(node.addr, wait_s=WAIT_S, remember=False, reuse=False)
            )
            for _ in range(CLIENTS)
        ]
        transport = await stack.enter_async_context(
            open_transport(generate().key, dht="client", validate=RecordRule())
        )
        await transport.connect(node.addr)
        async with trio.open_nursery() as asking:
            asking.start_soon(ask_for_room, transport, node, clients[0].model.digest, seen)
            async with trio.open_nursery() as nursery:
                for number in range(SESSIONS):
                    nursery.start_soon(decode, clients[number % CLIENTS], number, seen)
            asking.cancel_scope.cancel()
    assert [seen.tokens[number] for number in range(SESSIONS)] == answers()
    assert seen.refused
    assert {answer.code for answer in seen.refused} == {"busy"}
    assert all(answer.retry_after_s > 0 for answer in seen.refused)
