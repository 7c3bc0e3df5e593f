"""Several steps of a session under way at once: in order, gone back over, and while hops die or cannot go back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import trio
import trio.testing

from protocol.candidates import Candidates
from protocol.errors import LocalProtocolError
from swarm.session.flight import Flight
from swarm.session.session import Session
from tests.sim.test_session import DOUBLE, FAULTS, PROMPT
from tests.sim.world import greedy_reference, swarm_of
from tests.support.waiting import eventually

RIGHT = greedy_reference(PROMPT, 12)
WRONG = [(token + 1) % 32 for token in RIGHT]


@pytest.fixture
def clock() -> trio.testing.MockClock:
    """Time passes when everybody waits."""
    return trio.testing.MockClock(autojump_threshold=0)


def best(found: Candidates | None) -> int:
    """The token it gives."""
    assert found is not None
    return int(found.ids[0, 0])


async def send_each(session: Session, tokens: Sequence[int]) -> list[Flight]:
    """One step for each."""
    return [await session.send_step([token]) for token in tokens]


async def land(flights: Sequence[Flight]) -> list[int]:
    """What they give."""
    return [best(await flight.found()) for flight in flights]


@pytest.mark.parametrize("direct", [True, False])
async def test_steps_under_way_share_a_trip(direct: bool, clock: trio.testing.MockClock) -> None:
    """Four take about as long as one, and each knows how long it was under way."""
    async with swarm_of((0, 3), (3, 6), (6, 8), latency_s=0.05) as world:
        session = await world.session(direct=direct)
        began = trio.current_time()
        await session.step(PROMPT)
        trip_s = trio.current_time() - began
        began = trio.current_time()
        flights = await send_each(session, RIGHT[:4])
        assert session.tokens == [*PROMPT, *RIGHT[:4]]
        await trio.sleep(3 * trip_s)
        assert await land(flights) == RIGHT[1:5]
        assert trio.current_time() - began < 3.5 * trip_s
        assert all(flight.seconds < 1.5 * trip_s for flight in flights)


async def test_going_back_forgets_what_is_under_way(clock: trio.testing.MockClock) -> None:
    """What was drafted wrongly is awaited no more; what comes of it is not taken for anything else."""
    async with swarm_of((0, 4), (4, 8)) as world:
        session = await world.session()
        assert best(await session.step(PROMPT)) == RIGHT[0]
        first, *later = await send_each(session, [RIGHT[0], *WRONG[1:5]])
        assert best(await first.found()) == RIGHT[1]
        anew = await session.send_step([RIGHT[1]], position=len(PROMPT) + 1)
        with pytest.raises(LocalProtocolError, match="gone back over"):
            await later[0].found()
        assert best(await anew.found()) == RIGHT[2]
        assert session.tokens == [*PROMPT, *RIGHT[:2]]
        assert not world.bans.noted


async def test_steps_are_awaited_in_their_order(clock: trio.testing.MockClock) -> None:
    """Nor is a session forked while some are under way."""
    async with swarm_of((0, 8)) as world:
        session = await world.session()
        await session.step(PROMPT)
        first, second = await send_each(session, RIGHT[:2])
        with pytest.raises(LocalProtocolError, match="between its steps"):
            await session.fork()
        with pytest.raises(LocalProtocolError, match="order"):
            await second.found()
        assert await land([first, second]) == RIGHT[1:3]


@pytest.mark.parametrize(("wait_s", "direct"), [(0.0, True), (0.02, True), (0.02, False)])
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
@pytest.mark.parametrize("victim", [0, 3])
async def test_a_hop_dies_with_steps_under_way(
    fault: Any, victim: int, wait_s: float, direct: bool, clock: trio.testing.MockClock
) -> None:
    """All of them give what they would have given, and so does what goes back over the later ones."""
    async with swarm_of(*DOUBLE, slow=[4, 5, 6, 7]) as world:
        session = await world.session(direct=direct)
        assert best(await session.step(PROMPT)) == RIGHT[0]
        flights = await send_each(session, [*RIGHT[:4], *WRONG[4:6]])
        await trio.sleep(wait_s)
        fault(world, victim)
        assert await land(flights[:4]) == RIGHT[1:5]
        flights = [
            await session.send_step([RIGHT[4]], position=len(PROMPT) + 4),
            *await send_each(session, RIGHT[5:9]),
        ]
        assert await land(flights) == RIGHT[5:10]
        assert session.tokens == [*PROMPT, *RIGHT[:9]]


async def test_what_keeps_a_state_computes_again_what_it_goes_back_over(
    clock: trio.testing.MockClock,
) -> None:
    """Every row before the step comes again, and the hops stay."""
    async with swarm_of((0, 4), (4, 8)) as world:
        for node in world.nodes:
            node.engine.keeps_state, node.engine.goes_back = True, False
        session = await world.session()
        assert not session.goes_back
        await session.step([*PROMPT, *WRONG[:3]])
        assert best(await session.step(RIGHT[:1], position=len(PROMPT))) == RIGHT[1]
        assert not session.reroutes
        assert session.tokens == [*PROMPT, RIGHT[0]]


async def test_who_says_that_it_goes_back_and_cannot_ends_nothing(clock: trio.testing.MockClock) -> None:
    """The first time it is filled anew, and then nobody is asked to go back any more."""
    async with swarm_of((0, 4), (4, 8), (0, 4), (4, 8)) as world:
        for node in world.nodes:
            node.engine.keeps_state = True
        session = await world.session(wait_s=60)
        assert session.goes_back
        await session.step([*PROMPT, *WRONG[:3]])
        assert best(await session.step(RIGHT[:1], position=len(PROMPT))) == RIGHT[1]
        assert not session.goes_back
        lost = len(session.reroutes)
        assert lost
        assert best(await session.step(RIGHT[:1], position=len(PROMPT))) == RIGHT[1]
        assert len(session.reroutes) == lost
        await session.aclose()
        await eventually(lambda: not any(len(node.hop) for node in world.nodes), 5)
