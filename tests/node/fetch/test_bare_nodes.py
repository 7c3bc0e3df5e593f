"""Whole nodes over the memory network, with real weights: the first has a checkpoint, the others an address."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import trio
from safetensors.torch import load_file

from node.backend import Backend, open_backend
from node.compute.call import run_alone
from node.compute.interfaces import Engine
from node.config import NodeConfig
from node.daemon import Node
from node.events import Event, Fetched
from node.native.checkpoint import NativeCheckpoint
from node.native.precision import F32
from node.store.cache import Cache
from node.store.files import FetchedFiles
from protocol.candidates import Candidates, Want
from protocol.errors import ConfigError, NoRoute, SwarmError, unwrapped
from protocol.hints import RecordRule
from protocol.identity import generate
from protocol.model import Span, weights_digest
from protocol.tensors import from_numpy
from protocol.transport.memory import Network
from tests.support.gguf import as_q8_0, convert
from tests.support.models import make_model
from tests.support.quantised import METHODS, quantise
from tests.support.waiting import eventually

LAYERS = 4
WHOLE = Span(0, LAYERS + 2)
TOKENS = np.array([257, 72, 105, 33], np.int32)


@dataclass(eq=False)
class Running:
    """A node, what it told, and a way to end it."""

    cache: Path
    events: list[Event] = field(default_factory=list)
    addrs: tuple[str, ...] = ()
    error: SwarmError | None = None
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    ended: trio.Event = field(default_factory=trio.Event)
    backends: list[Backend] = field(default_factory=list)

    @property
    def fetched(self) -> Fetched:
        """How the fetch ended."""
        (found,) = [event for event in self.events if isinstance(event, Fetched)]
        return found

    def said(self, beginning: str) -> list[str]:
        """Lines that begin so."""
        return [line for line in map(str, self.events) if line.startswith(beginning)]

    async def stop(self) -> None:
        """End it without a word, as a crash would."""
        self.scope.cancel()
        await self.ended.wait()


class Village:
    """Nodes on one network, each with a disk of its own."""

    def __init__(self, nursery: trio.Nursery, folder: Path) -> None:
        self._network = Network(rng=random.Random(3))
        self._nursery = nursery
        self._folder = folder
        self._count = 0

    async def node(self, model: Path | str | None, cache: Path | None = None, **options: Any) -> Running:
        """A node that serves, or has failed."""
        self._count += 1
        running = Running(cache or self._folder / str(self._count))
        name = str(model) if model is not None else None
        config = NodeConfig(name, kv_tokens=256, threads=1, cache_dir=str(running.cache), **options)
        self._nursery.start_soon(self._run, config, running)
        await eventually(lambda: running.said("ready ") or running.error is not None, 30)
        return running

    async def _run(self, config: NodeConfig, running: Running) -> None:
        identity = generate()
        async with self._network.transport(identity.key, validate=RecordRule()) as transport:
            running.addrs = transport.addrs

            def opens(config: NodeConfig, fetched: FetchedFiles | None = None) -> Backend:
                running.backends.append(open_backend(config, fetched))
                return running.backends[-1]

            node = Node(config, identity, transport, opens, running.events.append)
            with running.scope:
                try:
                    await node.run()
                except (SwarmError, ExceptionGroup) as raised:
                    error = unwrapped(raised)
                    assert isinstance(error, SwarmError)
                    running.error = error
        running.ended.set()


@pytest.fixture
async def village(nursery: trio.Nursery, tmp_path: Path) -> AsyncIterator[Village]:
    """Ends with the test."""
    yield Village(nursery, tmp_path / "disks")
    nursery.cancel_scope.cancel()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint in several files, its head tied to the embedding."""
    folder = tmp_path_factory.mktemp("models") / "tied"
    return make_model("qwen2", folder, seed=1, layers=LAYERS, sharded=True)


def best(engine: Engine) -> list[int]:
    """The best next id after each of TOKENS."""
    found = run_alone(engine, engine.new_cache(WHOLE), 0, from_numpy(TOKENS), Want(every=True))
    assert isinstance(found, Candidates)
    return [int(row[0]) for row in found.ids]


def span_bytes(model: Path, span: Span) -> int:
    """What the tensors of a span take as they are stored, each once."""
    checkpoint = NativeCheckpoint.open(str(model), F32)
    tensors = {name: place for stage in span for name, place in checkpoint.stored(stage).items()}
    return sum(tensor.stop - tensor.start for _, tensor in tensors.values())


async def test_a_node_with_nothing_but_an_address(village: Village, model: Path) -> None:
    """It serves the whole model from what it has fetched: as many bytes as that takes, a tied embedding once."""
    origin = await village.node(model)
    bare = await village.node(None, join=origin.addrs)
    assert bare.fetched.fetched_bytes == span_bytes(model, WHOLE)
    assert bare.said("serving embedding + layers 0:4 + head of tied")
    assert bare.said("others join with:") == [f"others join with:  swarm node --join {bare.addrs[0]}"]
    assert bare.said("weights ") == origin.said("weights ")
    assert not bare.said("warning")


async def test_what_was_fetched_is_given_on(village: Village, model: Path) -> None:
    """The origin goes; a third node has everything from the second, and a fourth from both."""
    origin = await village.node(model)
    second = await village.node(None, join=origin.addrs)
    await origin.stop()
    third = await village.node(None, join=second.addrs)
    assert third.fetched.peers == 1
    fourth = await village.node(None, join=third.addrs)
    assert fourth.fetched.fetched_bytes >= span_bytes(model, WHOLE)
    assert fourth.said("weights ") == origin.said("weights ")


async def test_layers_that_are_held_and_not_served(village: Village, model: Path) -> None:
    """The origin serves one end of the model and gives the rest of it too: others can serve what it does not."""
    origin = await village.node(model, layers=(0, 1))
    bare = await village.node(None, join=origin.addrs, layers=(1, 4))
    assert bare.said("serving layers 1:4 + head of")
    assert bare.fetched.fetched_bytes == span_bytes(model, Span(2, 6))


@pytest.mark.parametrize("by", ["name", "digest"])
async def test_the_model_is_chosen(village: Village, model: Path, by: str, tmp_path: Path) -> None:
    """Where a swarm serves several, by its name or the first digits of its digest; else it is the door's."""
    other = make_model("llama", tmp_path / "other", seed=2, layers=2)
    origin = await village.node(model)
    second = await village.node(other, join=origin.addrs)
    digest = NativeCheckpoint.open(str(other), F32).manifest.digest.hex()
    bare = await village.node("other" if by == "name" else digest[:8], join=origin.addrs)
    assert bare.said("serving embedding + layers 0:2 + head of other")
    assert (await village.node(None, join=second.addrs)).said(
        "serving embedding + layers 0:2 + head of other"
    )
    assert (await village.node(None, join=origin.addrs)).said("serving embedding + layers 0:4 + head of tied")


async def test_a_model_that_nobody_serves(village: Village, model: Path) -> None:
    """One line names those there are."""
    origin = await village.node(model)
    bare = await village.node("strange", join=origin.addrs)
    assert isinstance(bare.error, ConfigError)
    assert "nobody serves the model 'strange'; this swarm serves tied (" in str(bare.error)


async def test_nobody_gives(village: Village, model: Path) -> None:
    """Where the only node shares nothing, a node that has nothing says so in one line and ends."""
    origin = await village.node(model, share=False)
    bare = await village.node(None, join=origin.addrs)
    assert isinstance(bare.error, NoRoute)
    assert str(bare.error) == (
        "nobody in this swarm gives the weights of embedding + layers 0:4 + head of tied"
    )
    assert origin.said("others join with:")[0].startswith(f"others join with:  swarm node --model {model}")


async def test_the_weights_are_those_that_were_pinned(village: Village, model: Path, tmp_path: Path) -> None:
    """Whoever else serves others under the same model digest, and whichever is the door."""
    other = make_model("qwen2", tmp_path / "tied", seed=2, layers=LAYERS)
    origin = await village.node(model)
    liar = await village.node(other, join=origin.addrs)
    digests = [NativeCheckpoint.open(str(m), F32).stage_digests(WHOLE) for m in (model, other)]
    pins = [weights_digest(each).hex() for each in digests]
    for pin, honest in zip(pins, (origin, liar), strict=True):
        bare = await village.node(None, join=(*origin.addrs, *liar.addrs), weights=pin)
        assert bare.said("weights ") == honest.said("weights ") == [f"weights {pin[:32]}"]
        await bare.stop()
    bare = await village.node(None, join=origin.addrs, weights="0" * 32)
    assert isinstance(bare.error, ConfigError)
    assert "is the weights 00000000000000000000000000000000" in str(bare.error)


async def test_a_start_from_the_disk(village: Village, model: Path) -> None:
    """What was fetched is there when the node comes back; what the disk has spoilt comes again, and nothing else."""
    origin = await village.node(model)
    bare = await village.node(None, join=origin.addrs)
    await bare.stop()
    again = await village.node(None, join=origin.addrs, cache=bare.cache)
    assert again.fetched.fetched_bytes == 0
    await again.stop()
    (first, *_) = sorted(bare.cache.rglob("0001-*.safetensors"))
    with first.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        byte = file.read(1)
        file.seek(-1, os.SEEK_END)
        file.write(bytes([byte[0] ^ 1]))
    mended = await village.node(None, join=origin.addrs, cache=bare.cache)
    assert 0 < mended.fetched.fetched_bytes < 100_000
    assert mended.said("weights ") == origin.said("weights ")
    (kept,) = Cache(bare.cache).models()
    assert (kept.name, kept.stages, kept.in_use) == ("tied", 6, True)


async def test_there_is_no_room(village: Village, model: Path) -> None:
    """One line, and nothing was fetched."""
    origin = await village.node(model)
    bare = await village.node(None, join=origin.addrs, cache_size=10_000)
    assert isinstance(bare.error, ConfigError)
    assert "see --cache-size" in str(bare.error)
    assert not list(bare.cache.rglob("*.part"))


async def test_a_node_waits_for_another_on_its_machine(village: Village, model: Path) -> None:
    """Two that fetch into one folder at once do it once."""
    origin = await village.node(model)
    found: list[Running] = []

    async def start() -> None:
        found.append(await village.node(None, join=origin.addrs, cache=origin.cache))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(start)
        nursery.start_soon(start)
    assert all(node.error is None for node in found)
    assert sum(node.fetched.fetched_bytes for node in found) == span_bytes(model, WHOLE)


async def test_weights_of_a_gguf_file(village: Village, tmp_path: Path) -> None:
    """They are fetched as they are stored, and computed as from the file."""
    folder = make_model("llama", tmp_path / "llama", seed=4, layers=LAYERS, head_dim=32)
    file = convert(folder, tmp_path / "q8.gguf", as_q8_0)
    origin = await village.node(file, quant="int8")
    bare = await village.node(None, join=origin.addrs, quant="int8")
    assert bare.said("weights ") == origin.said("weights ")
    assert bare.fetched.fetched_bytes == span_bytes(file, WHOLE)
    assert best(bare.backends[-1].load(WHOLE)) == best(origin.backends[-1].load(WHOLE))


@pytest.mark.parametrize("engine", ["native", "torch"])
async def test_what_was_fetched_computes_the_same(village: Village, model: Path, engine: str) -> None:
    """By either engine, from the files that a node has made."""
    origin = await village.node(model)
    bare = await village.node(None, join=origin.addrs, engine=engine)
    assert bare.fetched.fetched_bytes
    assert best(bare.backends[-1].load(WHOLE)) == best(origin.backends[-1].load(WHOLE))


async def test_a_model_of_the_hub(village: Village, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the hub cannot give it, the swarm does, by the same name; pinned, the swarm is asked first."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    origin = await village.node(model, name="org/tied")
    bare = await village.node("org/tied", join=origin.addrs)
    assert any("the hub cannot be reached; asking the swarm" in line for line in bare.said("note:"))
    assert bare.said("weights ") == origin.said("weights ")
    pin = origin.said("weights ")[0].removeprefix("weights ")
    pinned = await village.node("org/tied", join=origin.addrs, weights=pin)
    assert not pinned.said("note:")
    assert pinned.said("weights ") == origin.said("weights ")
    other = await village.node("org/other", join=origin.addrs)
    assert isinstance(other.error, ConfigError)
    assert "the hub cannot be reached" in str(other.error)


@pytest.mark.parametrize("method", ["gptq, zeros", "fp8, blocks", "packed, 8 bits, head"])
async def test_quantised_weights(village: Village, tmp_path: Path, method: str) -> None:
    """They are fetched as they are stored, parts and all, each parcel once, and stand for the same."""
    sizes: dict[str, Any] = {"hidden_size": 128, "intermediate_size": 256}
    plain = make_model("llama", tmp_path / "llama", seed=3, layers=LAYERS, **sizes)
    quantised, _ = quantise(plain, tmp_path, METHODS[method])
    origin = await village.node(quantised)
    bare = await village.node(None, join=origin.addrs)
    assert bare.said("weights ") == origin.said("weights ")
    assert bare.fetched.fetched_bytes <= span_bytes(quantised, WHOLE)
    assert best(bare.backends[-1].load(WHOLE)) == best(origin.backends[-1].load(WHOLE))


def as_torch_saves(model: Path, folder: Path) -> Path:
    """The same checkpoint with its weights in a pickle."""
    shutil.copytree(model, folder, ignore=shutil.ignore_patterns("*.safetensors*"))
    files = sorted(model.glob("*.safetensors"))
    torch.save({n: t for file in files for n, t in load_file(file).items()}, folder / "pytorch_model.bin")
    return folder


async def test_what_torch_saved_is_the_same_weights(village: Village, model: Path, tmp_path: Path) -> None:
    """Whoever fetches cannot tell a .bin from a safetensors file, and fetches from both at once."""
    folder = as_torch_saves(model, tmp_path / "tied")
    origin = await village.node(model)
    other = await village.node(folder, join=origin.addrs)
    assert other.said("weights ") == origin.said("weights ")
    bare = await village.node(None, join=other.addrs)
    assert bare.said("weights ") == origin.said("weights ")
    assert not bare.said("warning")
