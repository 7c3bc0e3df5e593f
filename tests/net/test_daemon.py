"""Nodes as real processes, with the real engine, over real QUIC on loopback."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import trio

from node.compute.call import run_alone
from node.engine.checkpoint import Checkpoint
from node.engine.span import SpanEngine
from protocol.candidates import Candidates, Want
from protocol.errors import Lost
from protocol.hints import RecordRule
from protocol.identity import generate
from protocol.messages import SESSION_PROTOCOL, Ack, Error, NextHop, Open, Opened, Output, Ping, Pong, Step
from protocol.model import Span
from protocol.records import Announcement, parse_record
from protocol.session import Side, StreamState
from protocol.talk.channel import Channel
from protocol.talk.exchange import exchange_maps, fetch_model
from protocol.tensors import from_numpy
from protocol.transport.base import Transport
from protocol.transport.libp2p import open_transport
from tests.support.forge import Forge
from tests.support.local_swarm import LocalSwarm, wait_for_news
from tests.support.models import make_model
from tests.support.processes import Processes

pytestmark = pytest.mark.net

LAYERS = 4
STAGES = LAYERS + 2
TOKENS = [257, 72, 105, 33]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint."""
    return make_model("llama", tmp_path_factory.mktemp("model"), seed=1, layers=LAYERS)


@pytest.fixture
def nodes(forge: Forge, model: Path, tmp_path: Path) -> Iterator[LocalSwarm]:
    """A swarm that ends with the test."""
    with Processes(launch=forge.start) as processes:
        yield LocalSwarm(processes, model, tmp_path, extra=["--kv-tokens", "1000"])


class Peer:
    """A client's transport with what a test asks of nodes."""

    def __init__(self, transport: Transport) -> None:
        self.transport = transport

    async def map_of(self, addr: str) -> dict[str, Announcement]:
        """What the node at `addr` holds."""
        peer = await self.transport.connect(addr)
        records, _ = await exchange_maps(self.transport, peer, [addr])
        said = [parse_record(data, time.time()).announcement for data in records]
        return {announcement.peer: announcement for announcement in said}

    async def open(self, addr: str, asked: Open) -> Channel:
        """A session stream on which the hop has agreed."""
        peer = addr.rpartition("/")[2]
        stream = await self.transport.open_stream(peer, [addr], SESSION_PROTOCOL)
        channel = Channel(stream, state=StreamState(Side.OPENER))
        await channel.send(asked)
        await channel.expect(Opened, 5)
        return channel


def local_ids(model: Path) -> list[int]:
    """The best next id after each of TOKENS, from the unsplit model."""
    span = Span(0, STAGES)
    engine = SpanEngine.load(Checkpoint.open(str(model), span=span), span)
    rows = from_numpy(np.array(TOKENS, np.int32))
    found = run_alone(engine, engine.new_cache(span), 0, rows, Want(every=True))
    assert isinstance(found, Candidates)
    return [int(row[0]) for row in found.ids]


def step(number: int, position: int, tokens: list[int]) -> Step:
    """A step of token ids, candidates of every row wanted."""
    return Step(number, position, from_numpy(np.array(tokens, np.int32)), Want(every=True))


async def test_two_processes_serve_one_model(nodes: LocalSwarm, model: Path) -> None:
    """Through two nodes, hop to hop, a session gives the unsplit model's ids; then one says goodbye."""
    first, second = (node.addr for node in nodes.start("0:2", "2:4"))
    second_process = nodes.nodes[1].process
    digest = Checkpoint.open(str(model)).digest
    async with open_transport(generate().key, dht="client", validate=RecordRule()) as transport:
        client = Peer(transport)
        known = await client.map_of(first)
        assert {str(said.span) for said in known.values()} == {"0:3", "3:6"}
        assert all(said.decode_ms > 0 and said.state == "serving" for said in known.values())
        _, files = await fetch_model(transport, first.rpartition("/")[2], [first], digest)
        assert "tokenizer.json" in files
        back_id, peer = bytes(range(16)), second.rpartition("/")[2]
        back = await client.open(second, Open(back_id, digest, Span(3, 6), 100, None))
        target = NextHop(peer, back_id)
        front = await client.open(first, Open(bytes(16), digest, Span(0, 3), 100, target))
        await front.send(step(0, 0, TOKENS[:3]))
        await front.send(step(1, 3, TOKENS[3:]))
        found: list[int] = []
        while len(found) < len(TOKENS):
            message = await back.receive()
            if isinstance(message, Output):
                assert message.candidates is not None
                found += message.candidates.ids[:, 0].tolist()
        assert found == local_ids(model)
        second_process.signal(signal.SIGTERM)
        with trio.fail_after(3):
            while not isinstance(message := await back.receive(), Error):
                assert isinstance(message, Ack)
        assert message.code == "leaving"
        assert await trio.to_thread.run_sync(second_process.wait, 3) == 0
        assert (await client.map_of(first))[peer].state == "gone"


async def test_a_node_answers_while_it_computes(nodes: LocalSwarm, model: Path) -> None:
    """A ping overtakes the prompts that were sent before it."""
    [node] = nodes.start("0:4")
    digest = Checkpoint.open(str(model)).digest
    async with open_transport(generate().key, dht="client", validate=RecordRule()) as transport:
        channel = await Peer(transport).open(node.addr, Open(bytes(16), digest, Span(0, STAGES), 500, None))
        with trio.fail_after(30):
            for number in range(20):
                await channel.send(step(number, 0, TOKENS * 100))
            await channel.send(Ping(1))
            acks = 0
            while not isinstance(message := await channel.receive(), Pong):
                acks += isinstance(message, Ack)
        assert message.received == 20
        assert acks < 20


def test_a_signal_ends_it_at_once_while_it_starts(nodes: LocalSwarm) -> None:
    """With status 0, as whenever it is told to leave."""
    process = nodes.spawn("0:4")
    wait_for_news(process, "opening")
    process.signal(signal.SIGINT)
    assert process.wait(5) == 0


async def test_kill_is_noticed(nodes: LocalSwarm, model: Path) -> None:
    """The session at a killed node is lost to its client within the transport's idle time, pings within seconds."""
    [node] = nodes.start("0:4")
    digest = Checkpoint.open(str(model)).digest
    async with open_transport(
        generate().key, dht="client", validate=RecordRule(), idle_timeout_s=3
    ) as transport:
        channel = await Peer(transport).open(node.addr, Open(bytes(16), digest, Span(0, STAGES), 100, None))
        node.process.kill9()
        with trio.fail_after(10), pytest.raises(Lost):
            await channel.receive()
