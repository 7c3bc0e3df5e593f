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
# One shape or two of each kind of attack, for every run; `--thorough` runs all.
USUAL = (
    "relinks_to_a_victim",
    "records_then_links",
    "test_a_link_that_fails_tells_nothing_of_the_place",
    "link_down_then_nan",
    "link_down_then_another_width",
    "pongs_without_computing",
    "blames_the_client",
    "unsorted_candidates",
    "unread_candidates",
    "half_frames_before",
    "sessions_opened_and_closed",
    "proven_half_open_handshakes",
    "listening_voters",
    "another_model",
    "dead_records",
    "nasty_records",
    "ring_of_two",
    "relinked_ring",
    "silent_maps",
    "idle_model_conversations",
    "many_sessions",
    "hoarded_cache",
    "many_connections",
    "rapid_reset",
    "test_strangers_who_listen_do_not_either",
)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what is not usual, unless all is asked for."""
    if config.getoption("--thorough"):
        return
    here = Path(__file__).parent
    others = [i for i in items if here in i.path.parents and not any(name in i.name for name in USUAL)]
    items[:] = [item for item in items if item not in others]
    config.hook.pytest_deselected(items=others)


KV_TOKENS = 8192


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
async def arena(
    nodes: LocalSwarm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> AsyncIterator[Arena]:
    """The nodes, an honest client that has been there before, and nobody else yet."""
    monkeypatch.setenv("SWARM_HOME", str(tmp_path))
    with Processes() as attackers:
        addrs = [node.addr for node in nodes.nodes]
        async with swarm.connect(*addrs, wait_s=PATIENCE_S) as client:
            yield Arena(nodes, attackers, client, timed=request.config.getoption("--thorough"))
