"""Nodes as real processes, with the real engine, over real QUIC on loopback."""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trio

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
from tests.support.models import make_model
from tests.support.processes import Process, Processes

pytestmark = pytest.mark.net

SCRIPT = Path(__file__).with_name("run_node.py")
LOOPBACK = "/ip4/127.0.0.1/udp/0/quic-v1"
START_S = 60.0  # importing torch on a busy machine
LAYERS = 4
STAGES = LAYERS + 2
TOKENS = [257, 72, 105, 33]


@dataclass
class Nodes:
    """Starts nodes of one tiny model."""

    model: Path
    homes: Path
    processes: Processes = field(default_factory=Processes)
    count: int = 0

    def start(self, **fields: Any) -> Process:
        """A node, not yet serving."""
        self.count += 1
        config = {
            "model": str(self.model),
            "home": str(self.homes / str(self.count)),
            "listen": [LOOPBACK],
            "kv_tokens": 1000,
            **fields,
        }
        return self.processes.start([sys.executable, SCRIPT, json.dumps(config)], name=f"node {self.count}")

    def serving(self, **fields: Any) -> tuple[Process, str]:
        """A node that serves, and its address."""
        process = self.start(**fields)
        process.wait_for_line("^ready ", START_S)
        return process, process.wait_for_line("^address (.*)", 1).group(1)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint."""
    return make_model("llama", tmp_path_factory.mktemp("model"), seed=1, layers=LAYERS)


@pytest.fixture
def nodes(model: Path, tmp_path: Path) -> Iterator[Nodes]:
    """Nodes that end with the test."""
    started = Nodes(model, tmp_path)
    with started.processes:
        yield started


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
    found = engine.step(engine.new_cache(span), 0, rows, Want(every=True))
    assert isinstance(found, Candidates)
    return [int(row[0]) for row in found.ids]


def step(number: int, position: int, tokens: list[int]) -> Step:
    """A step of token ids, candidates of every row wanted."""
    return Step(number, position, from_numpy(np.array(tokens, np.int32)), Want(every=True))


async def test_two_processes_serve_one_model(nodes: Nodes) -> None:
    """Through two nodes, hop to hop, a session gives the unsplit model's ids; then one says goodbye."""
    _, first = nodes.serving(layers=[0, 2])
    second_process, second = nodes.serving(layers=[2, 4], join=[first])
    digest = Checkpoint.open(str(nodes.model)).digest
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
        assert found == local_ids(nodes.model)
        second_process.signal(signal.SIGTERM)
        with trio.fail_after(3):
            while not isinstance(message := await back.receive(), Error):
                assert isinstance(message, Ack)
        assert message.code == "leaving"
        assert await trio.to_thread.run_sync(second_process.wait, 3) == 0
        assert (await client.map_of(first))[peer].state == "gone"


async def test_a_node_answers_while_it_computes(nodes: Nodes) -> None:
    """A ping overtakes the prompts that were sent before it."""
    _, addr = nodes.serving()
    digest = Checkpoint.open(str(nodes.model)).digest
    async with open_transport(generate().key, dht="client", validate=RecordRule()) as transport:
        channel = await Peer(transport).open(addr, Open(bytes(16), digest, Span(0, STAGES), 500, None))
        with trio.fail_after(30):
            for number in range(20):
                await channel.send(step(number, 0, TOKENS * 100))
            await channel.send(Ping(1))
            acks = 0
            while not isinstance(message := await channel.receive(), Pong):
                acks += isinstance(message, Ack)
        assert message.received == 20
        assert acks < 20


def test_a_second_signal_ends_it_at_once(nodes: Nodes) -> None:
    """Even while it loads or leaves."""
    process = nodes.start()
    process.wait_for_line("^opening", START_S)
    process.signal(signal.SIGINT)
    assert process.wait(5) in (0, 130)


async def test_kill_is_noticed(nodes: Nodes) -> None:
    """The session at a killed node is lost to its client within the transport's idle time, pings within seconds."""
    process, addr = nodes.serving()
    digest = Checkpoint.open(str(nodes.model)).digest
    async with open_transport(
        generate().key, dht="client", validate=RecordRule(), idle_timeout_s=3
    ) as transport:
        channel = await Peer(transport).open(addr, Open(bytes(16), digest, Span(0, STAGES), 100, None))
        process.kill9()
        with trio.fail_after(10), pytest.raises(Lost):
            await channel.receive()


@pytest.mark.parametrize(
    ("fields", "status", "line"),
    [
        ({"layers": [1, 9]}, 2, r"^error: layers 1:9: the model has 4 layers, so use 0:4 or less$"),
        ({"model": "/nowhere/at/all"}, 2, r"^error: .*/nowhere/at/all"),
        ({"listen": ["rubbish"]}, 2, r"^error: malformed address 'rubbish'"),
        ({"layers": [0, 4], "max_memory": 10}, 2, r"^error: .*memory"),
    ],
    ids=["layers", "model", "listen", "memory"],
)
def test_what_cannot_be_is_one_line(nodes: Nodes, fields: dict[str, Any], status: int, line: str) -> None:
    """On stderr, with the exit status that scripts look at, and no traceback."""
    process = nodes.start(**fields)
    assert process.wait(START_S) == status
    process.wait_for_line(line, 1)
    assert not any("Traceback" in printed for printed in process.lines)


def test_damaged_weights_are_one_line(nodes: Nodes, tmp_path: Path) -> None:
    """A checkpoint without its shard is a BadCheckpoint: exit status 1."""
    folder = make_model("llama", tmp_path / "damaged", seed=1, layers=2)
    (folder / "model.safetensors").write_bytes(b"junk")
    process = nodes.start(model=str(folder))
    assert process.wait(START_S) == 1
    process.wait_for_line("^error: ", 1)
    assert not any("Traceback" in printed for printed in process.lines)


def test_nobody_to_join_is_one_line(nodes: Nodes) -> None:
    """After about ten seconds."""
    addr = f"/ip4/127.0.0.1/udp/9/quic-v1/p2p/{generate().peer}"
    process = nodes.start(join=[addr])
    assert process.wait(START_S) == 1
    process.wait_for_line("^error: no node answers at /ip4/127.0.0.1/udp/9/", 1)
