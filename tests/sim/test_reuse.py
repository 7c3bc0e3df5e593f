"""Sessions that begin alike, over a swarm in memory: whatever fails, the answer is that of the unsplit model."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import trio
import trio.testing

from node.compute.prefix import GRAIN
from tests.sim.world import World, greedy, greedy_reference, swarm_of

LONG = [(7 * i + 3) % 32 for i in range(300)]  # several prefill chunks
LONG_REST = len(LONG) % GRAIN
ROOM = 1 << 24
SPLITS = [[(0, 8)], [(0, 4), (4, 8)], [(0, 2), (2, 4), (4, 6), (6, 8)], [(0, 1), (1, 7), (7, 8)]]


@pytest.fixture
def clock() -> trio.testing.MockClock:
    """Time passes when everybody waits."""
    return trio.testing.MockClock(autojump_threshold=0)


def rows(world: World) -> list[int]:
    """Rows that each node computed since this was asked last."""
    computed = []
    for node in world.nodes:
        computed.append(sum(rows for _, rows in node.engine.steps))
        node.engine.steps.clear()
    return computed


async def answered(world: World, prompt: list[int], count: int, *, direct: bool = True) -> list[int]:
    """The answer in a session of its own, which ends."""
    session = await world.session(max_tokens=400, direct=direct)
    found = await greedy(session, prompt, count)
    await session.aclose()
    await trio.sleep(1)
    return found


@pytest.mark.parametrize("direct", [True, False])
@pytest.mark.parametrize("spans", SPLITS)
async def test_the_same_again(
    spans: list[tuple[int, int]], direct: bool, clock: trio.testing.MockClock
) -> None:
    """Over any split, from hop to hop or through the client: the prompt's last rows are computed, and the answer."""
    async with swarm_of(*spans, prefix_bytes=ROOM) as world:
        assert await answered(world, LONG, 4) == greedy_reference(LONG, 4)
        assert set(rows(world)) == {303}
        assert await answered(world, LONG, 8, direct=direct) == greedy_reference(LONG, 8)
        assert set(rows(world)) == {LONG_REST + 7}


async def test_the_next_turn(clock: trio.testing.MockClock) -> None:
    """Of a conversation that goes on in another session: what was said and answered is not computed again."""
    async with swarm_of((0, 4), (4, 8), prefix_bytes=ROOM) as world:
        said = [*LONG, *await answered(world, LONG, 20)]
        rows(world)
        assert await answered(world, [*said, 5, 6], 3) == greedy_reference([*said, 5, 6], 3)
        assert rows(world) == [(319 % GRAIN) + 3 + 2] * 2  # the last token of the answer was never sent


def freeze(world: World, peer: str) -> None:
    """It hangs."""
    world.network.pause(peer)


def kill(world: World, peer: str) -> None:
    """It is gone."""
    world.network.kill(peer)


@pytest.mark.parametrize("harm", [kill, freeze])
@pytest.mark.parametrize("which", [0, 1])
async def test_a_hop_fails_after_it_took(
    harm: Callable[[World, str], None], which: int, clock: trio.testing.MockClock
) -> None:
    """In the middle of the answer: what was taken fills the replacement, and nobody else computes it again."""
    async with swarm_of(
        (0, 4), (4, 8), (0, 4), (4, 8), slow=(2, 3), prefix_bytes=ROOM, latency_s=0.002
    ) as world:
        await answered(world, LONG, 1)
        rows(world)
        session = await world.session(max_tokens=400)
        found = await greedy(session, LONG, 3)
        dead = session.route.hops[which].peer
        assert dead in {node.peer for node in world.nodes[:2]}
        harm(world, dead)
        candidates = await session.step(found[-1:])
        assert candidates is not None
        found.append(int(candidates.ids[0, 0]))
        found += await greedy(session, found[-1:], 4)
        assert found == greedy_reference(LONG, 8)
        assert session.reroutes
        computed = rows(world)
        assert computed[1 - which] < 30
        assert sum(computed) < 303 + 60


async def test_a_new_hop_does_not_know(clock: trio.testing.MockClock) -> None:
    """The second session finds another node behind the first hop: it gets all rows."""
    async with swarm_of((0, 4), (4, 8), (4, 8), slow=(2,), prefix_bytes=ROOM) as world:
        await answered(world, LONG, 2)
        world.network.kill(world.nodes[1].peer)
        rows(world)
        assert await answered(world, LONG, 4) == greedy_reference(LONG, 4)
        assert rows(world) == [LONG_REST + 3, 0, 303]


async def test_who_keeps_out(clock: trio.testing.MockClock) -> None:
    """Nothing is taken and nothing left."""
    async with swarm_of((0, 4), (4, 8), prefix_bytes=ROOM) as world:
        for _ in range(2):
            session = await world.session(max_tokens=400, reuse=False)
            assert await greedy(session, LONG, 2) == greedy_reference(LONG, 2)
            await session.aclose()
            await trio.sleep(1)
            assert rows(world) == [301, 301]
        assert all(node.hop.prefixes is not None and not len(node.hop.prefixes) for node in world.nodes)
