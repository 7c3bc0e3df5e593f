"""Real nodes on one machine, some with other weights under the same model digest."""

from __future__ import annotations

from pathlib import Path

import pytest

import swarm
from protocol.errors import NoRoute
from swarm.events import Event, Noticed
from tests.support.answers import generated
from tests.support.inprocess import running_nodes
from tests.support.models import make_model
from tests.support.waiting import eventually

pytestmark = [pytest.mark.net, pytest.mark.timeout(240)]

PROMPT = [257, 72, 105, 33]
NEW = 8
WHOLE = (0, 4)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two checkpoints that differ in nothing but their weights."""
    folder = tmp_path_factory.mktemp("models")
    ours, theirs = (
        make_model("llama", folder / name, seed=seed, layers=4) for name, seed in [("a", 1), ("b", 2)]
    )
    return ours, theirs


async def answer(client: swarm.Client) -> list[int]:
    """The tokens after PROMPT."""
    generation = client.generate(PROMPT, max_new_tokens=NEW)
    async for _ in generation:
        pass
    return list(generation.answer.tokens)


async def everybody_known(client: swarm.Client, count: int) -> None:
    """All nodes have been heard, and have answered."""

    async def known() -> bool:
        await client.refresh()
        return len(client.rtt_ms) >= count

    await eventually(known, 30)


async def test_a_crowd_of_invented_nodes(models: tuple[Path, Path]) -> None:
    """Three nodes with other weights join an honest one: who comes in through it gets its answer, and a warning.

    So do those who come in elsewhere with the digest of the weights, or have used the honest ones before.
    """
    ours, theirs = models
    expected = generated(ours, PROMPT, NEW)
    assert expected != generated(theirs, PROMPT, NEW)
    async with (
        running_nodes(ours, [WHOLE]) as honest,
        running_nodes(theirs, [WHOLE] * 3, join=honest) as liars,
    ):
        events: list[Event] = []
        async with swarm.connect(*honest, on_event=events.append, remember=False) as client:
            await everybody_known(client, 4)
            assert await answer(client) == expected
            digest = client.weights
        assert any(isinstance(e, Noticed) and "nodes differ about the weights" in e.text for e in events)
        assert digest is not None
        async with swarm.connect(*liars, weights=digest[:32], remember=False) as client:
            assert await answer(client) == expected
        async with swarm.connect(*honest) as client:
            await everybody_known(client, 4)
            assert await answer(client) == expected
        async with swarm.connect(*liars) as client:
            assert await answer(client) == expected


async def test_only_others_are_left(models: tuple[Path, Path]) -> None:
    """What was used is gone, and nodes with other weights are there: no answer until the user says so."""
    ours, theirs = models
    async with running_nodes(ours, [WHOLE]) as addrs, swarm.connect(*addrs) as client:
        assert await answer(client) == generated(ours, PROMPT, NEW)
    async with running_nodes(theirs, [WHOLE]) as addrs:
        async with swarm.connect(*addrs) as client:
            with pytest.raises(NoRoute, match="this client has used before"):
                await answer(client)
        async with swarm.connect(*addrs, weights="new") as client:
            assert await answer(client) == generated(theirs, PROMPT, NEW)
        async with swarm.connect(*addrs) as client:
            assert await answer(client) == generated(theirs, PROMPT, NEW)
