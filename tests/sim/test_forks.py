"""Forks of sessions: the same tokens as a session of their own gives, with nothing computed twice."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from protocol import limits
from protocol.errors import ConfigError, LocalProtocolError
from protocol.transport.allowance import PeerAllowance
from swarm.events import Rerouted
from swarm.session.session import Session
from tests.sim.test_session import DOUBLE, FAULTS, LONG, PROMPT, SPLITS
from tests.sim.world import World, greedy, greedy_reference, swarm_of


@pytest.fixture
def clock() -> trio.testing.MockClock:
    """Time passes when everybody waits."""
    return trio.testing.MockClock(autojump_threshold=0)


def computed(world: World) -> list[int]:
    """Rows that each node has computed."""
    return [sum(rows for _, rows in node.engine.steps) for node in world.nodes]


async def goes_on(session: Session, *then: int) -> bool:
    """Whether it goes on from `then` as the unsplit model does from all that it holds."""
    held = session.tokens + list(then)
    return await greedy(session, list(then), 4) == greedy_reference(held, 4)


@pytest.mark.parametrize("direct", [True, False])
@pytest.mark.parametrize("spans", SPLITS)
async def test_forks_go_on_as_sessions_of_their_own(
    spans: list[tuple[int, int]], direct: bool, clock: trio.testing.MockClock
) -> None:
    """At the end, in the middle, at the beginning, of a fork; and beside them the first session."""
    async with swarm_of(*spans) as world:
        session = await world.session(max_tokens=400, direct=direct)
        await greedy(session, LONG, 3)
        before = computed(world)
        forks = [await session.fork(), await session.fork(150), await session.fork(1)]
        forks.append(await forks[1].fork(140))
        assert computed(world) == before
        assert await goes_on(session, 5)
        for number, fork in enumerate(forks):
            assert await goes_on(fork, number)
        assert await goes_on(await session.fork(0), 9, 8)
        assert world.bans.noted == []


async def test_nothing_is_computed_for_a_fork(clock: trio.testing.MockClock) -> None:
    """Only the rows of its own steps."""
    async with swarm_of((0, 4), (4, 8)) as world:
        session = await world.session(max_tokens=400)
        await session.step(LONG)
        for _ in range(3):
            fork = await session.fork(200)
            await fork.step([1, 2])
        assert computed(world) == [306, 306]


async def test_many_forks_are_not_turned_away(clock: trio.testing.MockClock) -> None:
    """Who forks at each token for long is slowed down by itself, before hops refuse."""
    async with swarm_of((0, 4), (4, 8)) as world:
        session = await world.session()
        await session.step(PROMPT)
        for _ in range(3 * limits.FORKS_BURST):
            fork = await session.fork()
            fork.leave()
        assert not world.bans.noted
        assert not session.events
        assert computed(world) == [len(PROMPT)] * 2
        assert await goes_on(session, 7)


@pytest.mark.parametrize("slow", range(3))
@pytest.mark.parametrize("milliseconds", range(5, 70, 10))
async def test_a_fork_that_is_given_up_leaves_nothing(
    milliseconds: int, slow: int, clock: trio.testing.MockClock
) -> None:
    """Wherever it was, with one hop slower than the others; nor does a session that is given up while it opens."""
    async with swarm_of((0, 3), (3, 6), (6, 8)) as world:
        session = await world.session()
        await session.step(PROMPT)
        world.network.pause(world.nodes[slow].peer)
        with trio.move_on_after(milliseconds / 1000):
            await (await session.fork()).aclose()
        with trio.move_on_after(milliseconds / 1000):
            await (await world.session()).aclose()
        await session.aclose()
        await trio.sleep(1)
        assert [len(node.hop) for node in world.nodes if node is not world.nodes[slow]] == [0, 0]


async def test_going_back_in_one_leaves_the_others(clock: trio.testing.MockClock) -> None:
    """Whoever goes back, and however far."""
    async with swarm_of((0, 4), (4, 8)) as world:
        session = await world.session()
        await session.step([*PROMPT, 7, 7, 7])
        fork = await session.fork()
        await session.step([11, 12], position=3)
        second = await fork.fork(9)
        await fork.step([20], position=5)
        assert fork.tokens == [*PROMPT[:5], 20]
        assert second.tokens == [*PROMPT, 7]
        for each in (session, fork, second):
            assert await goes_on(each, 4)


async def test_a_fork_outlives_the_session_it_came_from(clock: trio.testing.MockClock) -> None:
    """And what is held in the end is given back."""
    async with swarm_of((0, 4), (4, 8)) as world:
        session = await world.session()
        await greedy(session, PROMPT, 3)
        fork = await session.fork()
        await session.aclose()
        assert await goes_on(fork, 6)
        await fork.aclose()
        await trio.sleep(1)
        assert [len(node.hop) for node in world.nodes] == [0, 0]
        assert all(cache.closed for node in world.nodes for cache in node.engine.caches)


@pytest.mark.parametrize("victim", range(4))
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
async def test_a_hop_that_fails_under_forks(fault, victim: int, clock: trio.testing.MockClock) -> None:  # type: ignore[no-untyped-def]
    """All of them go on, token for token; also where the fork is taken after the failure, before anybody knows."""
    async with swarm_of(*DOUBLE, slow=[4, 5, 6, 7]) as world:
        session = await world.session()
        await greedy(session, PROMPT, 5)
        forks = [await session.fork(), await session.fork(6)]
        fault(world, victim)
        forks.append(await session.fork(7))
        for fork in forks:
            assert await goes_on(fork, 3)
        assert await goes_on(session, 3)
        assert any(isinstance(event, Rerouted) for event in world.events)


@pytest.mark.parametrize("direct", [True, False])
@pytest.mark.parametrize("victims", [[0], [1], [3], [1, 2], [0, 3], [0, 1, 2, 3]])
async def test_where_a_hop_lets_no_session_fork_others_are_filled(
    victims: list[int], direct: bool, clock: trio.testing.MockClock
) -> None:
    """By the hop before it, or by the client; who shares computes nothing twice."""
    async with swarm_of(*DOUBLE, slow=[4, 5, 6, 7]) as world:
        session = await world.session(direct=direct)
        await greedy(session, PROMPT, 5)
        for victim in victims:
            world.nodes[victim].hop._forks = PeerAllowance(0.0, 0.0)
        before = computed(world)
        fork = await session.fork(9)
        assert await goes_on(fork, 3)
        after = computed(world)
        assert [after[i] - before[i] for i in range(4) if i not in victims] == [4] * (4 - len(victims))
        assert await goes_on(session, 3)
        assert all(ban.honest for ban in world.bans.noted)


async def test_what_cannot_be_forked_is_refused_here(clock: trio.testing.MockClock) -> None:
    """Beyond the end, and while a step is out."""
    async with swarm_of((0, 8), step_s=0.1) as world:
        session = await world.session()
        await session.step(PROMPT)
        for position in (-1, 9):
            with pytest.raises(ConfigError):
                await session.fork(position)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(session.step, [1])
            await trio.sleep(0.05)
            with pytest.raises(LocalProtocolError):
                await session.fork()
