"""What strangers make a real node's memory grow by: no more than the seats of their sessions say."""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trio

from node.hop.steps import Shape
from protocol import limits
from protocol.candidates import NOTHING, Want
from protocol.errors import SwarmError
from protocol.hints import RecordRule
from protocol.identity import generate
from protocol.messages import SESSION_PROTOCOL, Ack, Close, Error, Open, Opened, Step
from protocol.model import Manifest, Span
from protocol.records import parse_record
from protocol.session import Side, StreamState
from protocol.talk.channel import Channel
from protocol.talk.exchange import exchange_maps, fetch_model
from protocol.tensors import from_numpy
from protocol.transport.base import Transport
from protocol.transport.libp2p import open_transport
from tests.support.local_swarm import LocalSwarm, RunningNode
from tests.support.models import make_model
from tests.support.processes import Processes

pytestmark = [pytest.mark.net, pytest.mark.timeout(300)]

MIB = 1024 * 1024
LAYERS = 4
WHOLE, HEADLESS = Span(0, LAYERS + 2), Span(0, LAYERS + 1)
ROWS = 250
SESSIONS = 24  # at once
# What the process takes besides for working on anything at all: the allocator's slack, the engine's activations.
SLACK = 64 * MIB


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningNode]:
    """A node with room for many sessions, whose rows take 5 KiB and whose vocabulary 32."""
    folder = tmp_path_factory.mktemp("memory")
    sizes: dict[str, Any] = {"hidden_size": 256, "intermediate_size": 256, "vocab_size": 4096}
    model = make_model("llama", folder / "model", seed=1, layers=LAYERS, eos_token_id=None, **sizes)
    with Processes() as processes:
        swarm = LocalSwarm(processes, model, folder, extra=["--threads", "1", "--kv-tokens", "100000"])
        swarm.start(f"0:{LAYERS}")
        yield swarm.nodes[0]
        assert swarm.nodes[0].running
        assert not any("Traceback" in line for line in swarm.nodes[0].process.lines)


def memory(node: RunningNode) -> int:
    """Bytes that the process has resident now."""
    lines = Path(f"/proc/{node.process.pid}/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("VmRSS:")).split()[1])


class Stranger:
    """A peer that knows the node's model."""

    def __init__(self, transport: Transport, node: RunningNode, manifest: Manifest) -> None:
        self.transport = transport
        self.node = node
        self.manifest = manifest

    async def stream(self) -> Channel:
        """A session stream on which nothing was said."""
        stream = await self.transport.open_stream(self.node.peer, [self.node.addr], SESSION_PROTOCOL)
        return Channel(stream, state=StreamState(Side.OPENER))

    async def session(self, span: Span, max_tokens: int) -> Channel:
        """An open session, as soon as there is one for us: so many are opened in a second and no more."""
        with trio.fail_after(60):
            while True:
                channel = await self.stream()
                asked = Open(secrets.token_bytes(16), self.manifest.digest, span, max_tokens, None)
                await channel.send(asked)
                if isinstance(await channel.receive(), Opened):
                    return channel
                await trio.sleep(0.2)

    async def use(self, span: Span, want: Want) -> None:
        """A session as of an honest client, from its opening to its end."""
        channel = await self.session(span, ROWS + 2)
        for number, count in enumerate((ROWS, 1, 1)):
            await channel.send(step(number, 0 if number == 0 else ROWS + number - 1, count, want))
            while not isinstance(await channel.receive(), Ack):
                pass
        await channel.send(Close())
        await channel.stream.aclose()

    def seat_bytes(self, span: Span, max_tokens: int) -> int:
        """What such a session may have in motion."""
        return Shape(span, self.manifest, "f32", max_tokens).buffer_bytes


def step(number: int, position: int, rows: int, want: Want) -> Step:
    """A step of tokens."""
    return Step(number, position, from_numpy(np.ones(rows, np.int32)), want)


@asynccontextmanager
async def stranger(node: RunningNode) -> AsyncIterator[Stranger]:
    """A new peer; the node has served somebody before."""
    async with open_transport(generate().key, dht="client", validate=RecordRule()) as transport:
        await transport.connect(node.addr)
        digest = await digest_of(transport, node)
        manifest, _ = await fetch_model(transport, node.peer, [node.addr], digest)
        found = Stranger(transport, node, manifest)
        for _ in range(10):
            await found.use(HEADLESS, NOTHING)
            await found.use(WHOLE, Want(top=0))
        yield found


async def digest_of(transport: Transport, node: RunningNode) -> bytes:
    """Of the node's model, as it announces it."""
    records, _ = await exchange_maps(transport, node.peer, [node.addr])
    return parse_record(records[0], time.time()).announcement.digest


async def test_sessions_that_come_and_go(node: RunningNode) -> None:
    """A thousand, some at a time, leave nothing behind, though the collector hardly ever runs."""
    async with stranger(node) as client:
        before = memory(node)
        left = iter(range(1000))

        async def one_after_another() -> None:
            for number in left:
                await client.use(HEADLESS if number % 2 else WHOLE, NOTHING)

        async with trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(one_after_another)
        assert memory(node) - before < SLACK


@pytest.mark.parametrize("read", [True, False], ids=["read", "unread"])
async def test_answers_of_all_candidates(read: bool, node: RunningNode) -> None:
    """Sessions with the whole vocabulary wanted for as many rows as may be, whether they take it or not."""
    async with stranger(node) as client:
        before = memory(node)
        channels = [await client.session(WHOLE, 64) for _ in range(SESSIONS)]
        grown = 0

        async def ask(channel: Channel) -> None:
            for number in range(100):
                await channel.send(step(number, 0, 7, Want(every=True, top=0)))
                while read and not isinstance(await channel.receive(), Ack):
                    pass

        async with trio.open_nursery() as nursery:
            for channel in channels:
                nursery.start_soon(ask, channel)
            with trio.move_on_after(20):
                while len(nursery.child_tasks) > 0:
                    grown = max(grown, memory(node) - before)
                    await trio.sleep(0.1)
            nursery.cancel_scope.cancel()
        assert grown < SESSIONS * client.seat_bytes(WHOLE, 64) + SLACK
        for channel in channels:
            channel.stream.reset()


async def test_answers_that_are_too_large(node: RunningNode) -> None:
    """Are refused; the fault is the client's."""
    async with stranger(node) as client:
        channel = await client.session(WHOLE, 512)
        await channel.send(step(0, 0, 500, Want(every=True, top=0)))
        error = await channel.receive()
        assert isinstance(error, Error)
        assert (error.code, error.elsewhere) == ("bad_step", False)


async def test_frames_that_do_not_end(node: RunningNode) -> None:
    """Of what comes before `open` or `attach` no more than a little is kept."""
    async with stranger(node) as client:
        before = memory(node)
        channels = [await client.stream() for _ in range(60)]

        async def send(channel: Channel) -> None:
            body = limits.CONTROL_FRAME_BYTES - 1
            with contextlib.suppress(SwarmError):
                await channel.stream.send(body.to_bytes(4, "big") + bytes(body - 1))

        with trio.move_on_after(20):
            async with trio.open_nursery() as nursery:
                for channel in channels:
                    nursery.start_soon(send, channel)
        assert memory(node) - before < SLACK
        for channel in channels:
            channel.stream.reset()
