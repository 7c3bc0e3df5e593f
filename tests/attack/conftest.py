"""The arena of each module of attacks: four nodes, so that every layer is served twice, and an honest client."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

import swarm
from tests.attack.arena import PATIENCE_S, Arena
from tests.support.forge import Forge
from tests.support.local_swarm import LocalSwarm
from tests.support.processes import Processes

SHIPPED = Path(swarm.__file__).parent / "models" / "tiny"
HALVES = ("0:4", "4:8")
KV_TOKENS = 8192


@pytest.fixture(scope="session")
def forge() -> Iterator[Forge]:
    """Starts nodes in a fraction of a second."""
    with Forge() as opened:
        yield opened


@pytest.fixture(scope="module")
def model() -> Path:
    """The checkpoint that the nodes serve; a module may have its own."""
    return SHIPPED


@pytest.fixture(scope="module")
def layers() -> tuple[str, ...]:
    """What the nodes serve."""
    return (*HALVES, *HALVES)


@contextmanager
def running(
    forge: Forge, model: Path, layers: Sequence[str], join: str | None = None
) -> Iterator[LocalSwarm]:
    """Nodes of a checkpoint, in a swarm of their own or in another's."""
    with tempfile.TemporaryDirectory() as home, Processes(launch=forge.start) as processes:
        extra = ["--threads", "1", "--kv-tokens", str(KV_TOKENS), *(["--join", join] if join else [])]
        nodes = LocalSwarm(processes, model, Path(home), extra=extra)
        nodes.start(*layers)
        yield nodes


@pytest.fixture(scope="module")
def nodes(forge: Forge, model: Path, layers: tuple[str, ...]) -> Iterator[LocalSwarm]:
    """Running for the whole module: what one attack leaves behind, the next one's honest clients meet."""
    with running(forge, model, layers) as started:
        yield started


@pytest.fixture
async def arena(nodes: LocalSwarm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Arena]:
    """The nodes, an honest client that has been there before, and nobody else yet."""
    monkeypatch.setenv("SWARM_HOME", str(tmp_path))
    with Processes() as attackers:
        addrs = [node.addr for node in nodes.nodes]
        async with swarm.connect(*addrs, wait_s=PATIENCE_S) as client:
            yield Arena(nodes, attackers, client)
