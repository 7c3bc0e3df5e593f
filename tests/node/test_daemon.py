"""A whole node over the memory transport, with the fake engine behind it."""

from __future__ import annotations

import random
import re
from pathlib import Path

import pytest
import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from node.backend import OpenBackend
from node.compute.interfaces import Engine
from node.config import NodeConfig
from node.daemon import READ_BYTES, SUSPECTS_NAMED, Node
from node.engine.shards import StoredTensor
from node.native.load import NoKernels
from node.store.files import FetchedFiles
from protocol.candidates import Want
from protocol.errors import BadCheckpoint, ConfigError, SwarmError, Unreachable, unwrapped
from protocol.hints import RecordRule
from protocol.identity import generate
from protocol.inventory import Inventory, make_inventory
from protocol.messages import Error, NextHop, Output, Refused
from protocol.model import Manifest, Span, weights_digest
from protocol.numerics import Numerics
from protocol.talk.exchange import exchange_maps, fetch_model
from protocol.transport.memory import Network
from protocol.transport.memory.transport import MemoryTransport
from tests.node.fakes import (
    MANIFEST,
    STAGES,
    Client,
    FakeEngine,
    expected_ids,
    ids_of,
    opened,
    token_rows,
)
from tests.support.waiting import eventually

TOKENS = [3, 1, 4]
LAST = Want("candidates", top=3)


class FakeModel:
    """A checkpoint of which every stage takes ten bytes; `salt` makes other weights under the same digest."""

    name = "fake"
    manifest: Manifest = MANIFEST

    def __init__(self, salt: int = 0, broken: bool = False, here: bool = True, stage_bytes: int = 10) -> None:
        self._salt = salt
        self._broken = broken
        self._here = here
        self._stage_bytes = stage_bytes
        self.read: set[int] = set()  # stages whose weights were read

    def file(self, name: str) -> bytes:
        """There are none."""
        raise KeyError(name)

    def require(self, span: Span) -> None:
        """Here or not."""
        if self._broken:
            raise BadCheckpoint("fake: model.safetensors is missing")

    def has(self, stage: int) -> bool:
        """Beside what is served."""
        return self._here

    def stage_bytes(self, stage: int, dtype: str) -> int:
        """All alike."""
        return self._stage_bytes

    def stage_digests(self, span: Span) -> tuple[bytes, ...]:
        """By stage and salt."""
        self.read.update(span)
        return tuple(bytes([stage, self._salt] * 4) for stage in span)

    def inventory(self, stage: int) -> Inventory:
        """Of nothing."""
        return make_inventory({})

    def stored(self, stage: int) -> dict[str, tuple[Path, StoredTensor]]:
        """Nothing."""
        return {}


class FakeBackend:
    """Instead of torch."""

    def __init__(
        self, model: FakeModel | None = None, free_bytes: int = 1_000_000, precision: str = "f32"
    ) -> None:
        self.model = model or FakeModel()
        self._free_bytes = free_bytes
        self._precision = precision

    def numerics(self) -> Numerics:
        """See `node.backend.Backend`."""
        return Numerics(self._precision)

    def kernels(self) -> str:
        """See `node.backend.Backend`."""
        return "fake"

    def dtype(self) -> str:
        """See `node.backend.Backend`."""
        return "f32"

    def load(self, span: Span) -> Engine:
        """See `node.backend.Backend`."""
        return FakeEngine(span)

    def free_bytes(self) -> int:
        """See `node.backend.Backend`."""
        return self._free_bytes


class Running:
    """A node, what it said, and a way to end it."""

    def __init__(self, transport: MemoryTransport) -> None:
        self.transport = transport
        self.lines: list[str] = []
        self.error: SwarmError | None = None
        self.scope = trio.CancelScope()
        self.left = trio.Event()

    def said(self, beginning: str) -> list[str]:
        """Lines that begin so."""
        return [line for line in self.lines if line.startswith(beginning)]

    async def leave(self) -> None:
        """As on SIGTERM."""
        self.scope.cancel()
        with trio.fail_after(3):
            await self.left.wait()


class House:
    """Nodes on one network."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self.network = Network(rng=random.Random(3))
        self._nursery = nursery

    async def node(self, config: NodeConfig, backend: FakeBackend | OpenBackend | None = None) -> Running:
        """A node that serves, or has failed."""
        made, here = trio.open_memory_channel[Running](1)
        chosen = backend or FakeBackend()
        opens = (lambda config, fetched=None: chosen) if isinstance(chosen, FakeBackend) else chosen
        self._nursery.start_soon(self._run, config, opens, made)
        node = await here.receive()
        await eventually(lambda: node.said("ready ") or node.error is not None)
        return node

    async def client(self) -> MemoryTransport:
        """A peer that only dials."""
        made, here = trio.open_memory_channel[MemoryTransport](1)

        async def hold() -> None:
            async with self.network.transport(Ed25519PrivateKey.generate(), listen=False) as transport:
                made.send_nowait(transport)
                await trio.sleep_forever()

        self._nursery.start_soon(hold)
        return await here.receive()

    async def _run(
        self, config: NodeConfig, opens: OpenBackend, made: trio.MemorySendChannel[Running]
    ) -> None:
        identity = generate()
        async with self.network.transport(identity.key, validate=RecordRule()) as transport:
            running = Running(transport)
            made.send_nowait(running)
            node = Node(config, identity, transport, opens, lambda event: running.lines.append(str(event)))
            with running.scope:
                try:
                    await node.run()
                except (SwarmError, ExceptionGroup) as raised:
                    error = unwrapped(raised)
                    running.error = error if isinstance(error, SwarmError) else None
            await node.leave()
            running.left.set()
            await trio.sleep_forever()


@pytest.fixture
def house(nursery: trio.Nursery) -> House:
    """A network of its own."""
    return House(nursery)


async def test_two_nodes_serve_a_model_together(house: House) -> None:
    """Found by one address, opened, stepped; files are handed out; nothing but the address was told."""
    first = await house.node(NodeConfig("hub/fake", layers=(0, 3)))
    second = await house.node(NodeConfig("hub/fake", layers=(3, 6), join=first.transport.addrs))
    (serving,) = first.said("serving")
    assert re.sub(r"\d+\.\d\d ms", "… ms", serving) == (
        f"serving embedding + layers 0:3 of fake ({MANIFEST.digest.hex()[:12]}); weights 1000 B (f32, fake), "
        "room for 333 tokens (20.8 KiB), … ms per block and token"
    )
    me = await house.client()
    records, _ = await exchange_maps(me, first.transport.peer, first.transport.addrs)
    assert len(records) == 2
    manifest, files = await fetch_model(me, first.transport.peer, first.transport.addrs, MANIFEST.digest)
    assert (manifest.blocks, files) == (6, {})
    back = await opened(await Client.to(me, second.transport), Span(4, STAGES))
    target = NextHop(second.transport.peer, back.session)
    front = await opened(await Client.to(me, first.transport), Span(0, 4), next=target)
    await front.step(0, 0, token_rows(TOKENS), LAST)
    assert ids_of(await back.expect(Output)) == expected_ids(TOKENS)[-1:]


async def test_how_others_join_is_said_exactly(house: House) -> None:
    """Commands to copy, then one line that begins with ready."""
    node = await house.node(NodeConfig("fake model"))
    addr = node.transport.addrs[0]
    assert node.lines[-4:] == [
        f"address {addr}",
        f"others join with:  swarm node --model 'fake model' --join {addr}",
        f"others chat with:  swarm chat --join {addr}",
        f"ready {node.transport.peer}",
    ]


async def test_without_layers_a_node_takes_what_is_missing(house: House) -> None:
    """As much as its memory allows; the third finds all served and helps where it can."""
    small = FakeBackend(free_bytes=100)  # six stages of eight
    first = await house.node(NodeConfig("hub/fake"), small)
    second = await house.node(NodeConfig("hub/fake", join=first.transport.addrs), small)
    own = [line.split(" of ")[0] for line in (*first.said("loading"), *second.said("loading"))]
    assert set(own) <= {"loading embedding + layers 0:5", "loading layers 1:6 + head"}
    assert len(set(own)) == 2


def by_quant(*, free_bytes: int, kernels: bool = True) -> OpenBackend:
    """Backends of which a stage takes 40 bytes as stored, 20 and 10 in fewer bits."""
    sizes = {None: ("f32", 40), "int8": ("int8", 20), "int4": ("int4", 10)}

    def opens(config: NodeConfig, fetched: FetchedFiles | None = None) -> FakeBackend:
        if config.quant is not None and not kernels:
            raise NoKernels("none here")
        precision, size = sizes[config.quant]
        return FakeBackend(FakeModel(stage_bytes=size), free_bytes, precision)

    return opens


@pytest.mark.parametrize(
    ("free_bytes", "precision"), [(400, "f32"), (399, "int8"), (200, "int8"), (199, "int4"), (100, "int4")]
)
async def test_the_most_precise_that_fits(house: House, free_bytes: int, precision: str) -> None:
    """For the layers that its owner wants; three fifths of the memory are for weights."""
    node = await house.node(
        NodeConfig("hub/fake", layers=(0, 5), quant="auto"), by_quant(free_bytes=free_bytes)
    )
    assert node.said("serving embedding + layers 0:5 of")
    assert f" {precision}, fake)" in node.said("loading")[0]


async def test_precision_is_chosen_by_what_the_swarm_lacks(house: House) -> None:
    """The first node leaves as little undone as it can; the next ones find a whole swarm, and add precision."""
    opens = by_quant(free_bytes=134)  # for weights 80: two stages as stored, all eight in four bits
    first = await house.node(NodeConfig("hub/fake", quant="auto"), opens)
    second = await house.node(NodeConfig("hub/fake", quant="auto", join=first.transport.addrs), opens)
    assert "(80 B, int4, fake)" in first.said("loading")[0]
    assert "(80 B, f32, fake)" in second.said("loading")[0]
    assert "--quant auto" in first.said("others join with")[0]


async def test_without_kernels_there_is_one_precision(house: House) -> None:
    """The one that needs none; and what fits in none is told."""
    config = NodeConfig("hub/fake", layers=(0, 5), quant="auto")
    node = await house.node(config, by_quant(free_bytes=400, kernels=False))
    assert " f32, fake)" in node.said("loading")[0]
    node = await house.node(config, by_quant(free_bytes=90))
    assert isinstance(node.error, ConfigError)
    assert str(node.error) == "embedding + layers 0:5 take at least 60 B, 54 B may be used for weights"


async def test_leaving(house: House) -> None:
    """Sessions end with a word, others are told at once, new sessions are refused."""
    first = await house.node(NodeConfig("hub/fake", layers=(0, 3)))
    second = await house.node(NodeConfig("hub/fake", layers=(3, 6), join=first.transport.addrs))
    me = await house.client()
    client = await opened(await Client.to(me, second.transport), Span(4, STAGES))
    await second.leave()
    assert (await client.expect(Error)).code == "leaving"
    records, _ = await exchange_maps(me, first.transport.peer, first.transport.addrs)
    assert len(records) == 2
    late = await Client.to(me, second.transport)
    await late.open(Span(4, STAGES))
    assert (await late.expect(Refused)).code == "draining"


async def test_leaving_while_nothing_is_served_yet(house: House) -> None:
    """A node that could not join has nothing to take back."""
    node = await house.node(NodeConfig("hub/fake", layers=(0, 99)))
    assert isinstance(node.error, ConfigError)
    with trio.fail_after(1):
        await node.left.wait()


async def test_other_weights_are_warned_of_once(house: House) -> None:
    """By the node that joins; which are right is for the swarm's clients to judge."""
    first = await house.node(NodeConfig("hub/fake"))
    other = FakeBackend(FakeModel(salt=1))
    second = await house.node(NodeConfig("hub/fake", layers=(0, 3), join=first.transport.addrs), other)
    assert second.said("warning") == [
        f"warning: node {first.transport.peer} serves other weights for the same layers of this model"
    ]


@pytest.mark.slow
async def test_warnings_of_other_weights_are_bounded(house: House) -> None:
    """A crowd with invented identities gets so many lines and one more."""
    crowd = [await house.node(NodeConfig("hub/fake"))]
    for _ in range(SUSPECTS_NAMED + 3):
        crowd.append(await house.node(NodeConfig("hub/fake", join=crowd[0].transport.addrs)))
    odd = await house.node(
        NodeConfig("hub/fake", join=crowd[0].transport.addrs), FakeBackend(FakeModel(salt=1))
    )
    lines = odd.said("warning")
    assert len(lines) == len(set(lines)) == SUSPECTS_NAMED + 1
    assert "more nodes" in lines[-1]


@pytest.mark.parametrize("layers", [None, (0, 3)])
async def test_the_digest_of_the_whole_is_told(house: House, layers: tuple[int, int] | None) -> None:
    """By a node that serves everything, and by one that has the rest on its disk: the same."""
    node = await house.node(NodeConfig("hub/fake", layers=layers))
    whole = weights_digest(FakeModel().stage_digests(Span(0, STAGES))).hex()
    assert node.said("weights ") == [f"weights {whole[:32]}"]


@pytest.mark.parametrize("model", [FakeModel(here=False), FakeModel(stage_bytes=READ_BYTES)])
async def test_nothing_is_fetched_or_read_for_long_to_tell_the_digest(house: House, model: FakeModel) -> None:
    """What is not here, or large, is left alone."""
    backend = FakeBackend(model, free_bytes=100 * READ_BYTES)
    node = await house.node(NodeConfig("hub/fake", layers=(0, 3), kv_tokens=16), backend)
    assert node.said("ready ")
    assert model.read == {0, 1, 2, 3}
    assert node.said("weights ") == []


async def test_another_model_is_allowed_and_said(house: House) -> None:
    """In one line that names both."""
    first = await house.node(NodeConfig("hub/fake"))
    model = FakeModel()
    model.manifest = Manifest(6, 8, 32, 512, bytes(32), ())
    second = await house.node(NodeConfig("hub/fake", join=first.transport.addrs), FakeBackend(model))
    assert len(second.said("note: this swarm serves fake")) == 1
    assert second.said("ready ")


@pytest.mark.parametrize(
    ("config", "backend", "kind", "words"),
    [
        (NodeConfig("hub/fake", layers=(4, 99)), FakeBackend(), ConfigError, "use 0:6 or less"),
        (NodeConfig("hub/fake", layers=(0, 6), max_memory=50), FakeBackend(), ConfigError, "memory limit"),
        (NodeConfig("hub/fake"), FakeBackend(free_bytes=5), ConfigError, "smallest stage"),
        (NodeConfig("hub/fake"), FakeBackend(FakeModel(broken=True)), BadCheckpoint, "is missing"),
    ],
    ids=["layers", "limit", "memory", "broken"],
)
async def test_what_cannot_be(
    house: House, config: NodeConfig, backend: FakeBackend, kind: type[SwarmError], words: str
) -> None:
    """Named errors, one line each."""
    node = await house.node(config, backend)
    assert isinstance(node.error, kind)
    assert words in str(node.error)
    assert "\n" not in str(node.error)


async def test_nobody_to_join(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """An address that stays silent ends the node with one clear line."""
    monkeypatch.setattr("node.daemon.JOIN_WITHIN_S", 0.1)
    gone = await house.node(NodeConfig("hub/fake"))
    house.network.kill(gone.transport.peer)
    node = await house.node(NodeConfig("hub/fake", join=gone.transport.addrs))
    assert isinstance(node.error, Unreachable)
    assert str(node.error).startswith(f"no node answers at {gone.transport.addrs[0]}")
