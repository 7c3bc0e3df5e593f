"""Real node processes of which one has a checkpoint, and the others an address and an empty home."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import trio

import swarm
from node.native.checkpoint import NativeCheckpoint
from node.native.precision import F32
from protocol.model import Span
from swarm.cli.node_process import Told
from tests.support.answers import generated
from tests.support.forge import Forge
from tests.support.local_swarm import LOOPBACK, wait_for_news
from tests.support.models import make_model
from tests.support.processes import Process, Processes
from tests.support.waiting import eventually

pytestmark = [pytest.mark.net, pytest.mark.timeout(240)]

LAYERS = 4
PROMPT = [257, 72, 105, 33]
NEW = 40


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of 12 MiB, so that layers take several parcels."""
    folder = tmp_path_factory.mktemp("model")
    sizes: dict[str, Any] = {"hidden_size": 256, "intermediate_size": 704, "head_dim": 64}
    return make_model("llama", folder / "net", seed=1, layers=LAYERS, **sizes)


@dataclass(frozen=True)
class Bare:
    """A node that was started with an address alone."""

    process: Process
    addr: str
    fetched: Told


class Homes:
    """Starts nodes, each in a home of its own in which nothing is."""

    def __init__(self, processes: Processes, folder: Path) -> None:
        self._processes = processes
        self._folder = folder
        self._count = 0

    def spawn(self, *words: str) -> Process:
        """`swarm node` with these words."""
        self._count += 1
        home = self._folder / f"home-{self._count}"
        home.mkdir()
        env = {"HOME": str(home), "SWARM_HOME": str(home), "XDG_CACHE_HOME": str(home / ".cache")}
        argv = ["-m", "swarm", "node", "--json", "--listen", LOOPBACK, "--kv-tokens", "2000", *words]
        return self._processes.start([sys.executable, *argv], env=env, name=f"node {' '.join(words)}")

    def bare(self, join: str, *words: str) -> Bare:
        """A node that serves what it has fetched."""
        process = self.spawn("--join", join, *words)
        addr = wait_for_news(process, "ready").fields["addrs"][0]
        return Bare(process, addr, wait_for_news(process, "fetched"))


@pytest.fixture
def homes(forge: Forge, tmp_path: Path) -> Iterator[Homes]:
    """They end with the test."""
    with Processes(launch=forge.start) as processes:
        yield Homes(processes, tmp_path)


def span_bytes(model: Path, span: Span) -> int:
    """What its tensors take as they are stored."""
    checkpoint = NativeCheckpoint.open(str(model), F32)
    places = {n: place for stage in span for n, place in checkpoint.stored(stage).items()}
    return sum(tensor.stop - tensor.start for _, tensor in places.values())


async def test_a_swarm_from_one_checkpoint(homes: Homes, model: Path) -> None:
    """Two nodes fetch what they serve, the answer is right; the origin is killed in mid-answer, the answer goes on.

    Then a fourth node has everything from the second and the third. What was fetched is what the spans take.
    """
    origin = homes.spawn("--model", str(model))
    door = wait_for_news(origin, "ready").fields["addrs"][0]
    second = homes.bare(door, "--layers", "0:2")
    third = homes.bare(door, "--layers", "2:4")
    expected = generated(model, PROMPT, NEW)
    for bare, span in ((second, Span(0, 3)), (third, Span(3, 6))):
        size = span_bytes(model, span)
        assert size <= bare.fetched.fields["fetched_bytes"] <= 1.05 * size
    async with swarm.connect(door, second.addr, remember=False) as client:
        generation = client.generate(PROMPT, max_new_tokens=NEW)
        tokens = 0
        async for _ in generation:
            tokens += 1
            if tokens == 5:
                await trio.to_thread.run_sync(origin.kill9)
        assert list(generation.answer.tokens) == expected
    fourth = homes.bare(second.addr)
    assert fourth.fetched.fields["fetched_bytes"] <= 1.05 * span_bytes(model, Span(0, LAYERS + 2))
    assert fourth.fetched.fields["peers"] == 2
    for bare in (second, third):
        await trio.to_thread.run_sync(bare.process.kill9)
    async with swarm.connect(fourth.addr, remember=False) as client:
        generation = client.generate(PROMPT, max_new_tokens=NEW)
        async for _ in generation:
            pass
        assert list(generation.answer.tokens) == expected


async def test_a_node_that_is_killed_while_it_fetches(homes: Homes, model: Path, tmp_path: Path) -> None:
    """It goes on where it was, in the same home; both runs together fetch hardly more than the model takes."""
    origin = homes.spawn("--model", str(model), "--upload", "4M")
    door = wait_for_news(origin, "ready").fields["addrs"][0]
    cache = ("--cache-dir", str(tmp_path / "cache"))
    first = homes.spawn("--join", door, *cache)

    await eventually(lambda: list((tmp_path / "cache").rglob("*.safetensors")), 60)
    await trio.to_thread.run_sync(first.kill9)
    again = homes.bare(door, *cache)
    size = span_bytes(model, Span(0, LAYERS + 2))
    assert again.fetched.fields["fetched_bytes"] < size
    assert again.process.returncode is None
