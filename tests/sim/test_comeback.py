"""A session that waits for the only node of some layers goes on as soon as that node serves again."""

from __future__ import annotations

from collections.abc import Awaitable
from contextlib import AsyncExitStack

import pytest
import trio
import trio.testing

from protocol.errors import NoRoute
from protocol.model import Span
from swarm.routing.route import Need
from swarm.session.session import Session
from tests.node.fakes import MANIFEST
from tests.sim.world import ALL, World, greedy, greedy_reference, start_node, swarm_of

PROMPT = [3, 1, 4, 1, 5, 9, 2, 6]
# The swarm is asked each half second; a probe of the dead holds a round up for one second.
GOES_ON_S = 2.0


@pytest.fixture
def clock() -> trio.testing.MockClock:
    """Time passes when everybody waits."""
    return trio.testing.MockClock(autojump_threshold=0)


async def away(world: World, stack: AsyncExitStack, seconds: float, *, silently: bool = False) -> None:
    """The last node dies, and another process with its key and place serves after so long."""
    dead = world.nodes.pop()
    world.network.kill(dead.peer, silently=silently)
    await trio.sleep(seconds)
    span = dead.engine.span
    world.nodes.append(
        await start_node(stack, world.network, span, lambda: world.nodes, identity=dead.identity)
    )


@pytest.mark.slow
@pytest.mark.parametrize("silently", [False, True])
@pytest.mark.parametrize("seconds", [1.0, 16.0, 61.0, 124.0, 300.0])
async def test_regression_bans_do_not_outlive_the_outage(
    seconds: float, silently: bool, clock: trio.testing.MockClock
) -> None:
    """Killed or cut off, for long or short: the answer goes on within two seconds of the return."""
    async with swarm_of((0, 4), (4, 8)) as world:
        session = await world.session(wait_s=600)
        begin = await greedy(session, PROMPT, 5)
        async with trio.open_nursery() as nursery, AsyncExitStack() as stack:
            await goes_on(session, begin, 5, nursery, away(world, stack, seconds, silently=silently))
        assert begin == greedy_reference(PROMPT, 10)


async def goes_on(
    session: Session, found: list[int], count: int, nursery: trio.Nursery, outage: Awaitable[None]
) -> None:
    """While there is an outage the next tokens are asked for; they are there soon after it."""
    done = trio.Event()

    async def ask() -> None:
        found.extend(await greedy(session, found[-1:], count))
        done.set()

    nursery.start_soon(ask)
    await outage
    with trio.fail_after(GOES_ON_S):
        await done.wait()


async def test_a_node_that_dies_often_is_not_left_out(clock: trio.testing.MockClock) -> None:
    """The only node dies in every step, eight times in a row: each time the session goes on within two seconds."""
    async with swarm_of((0, 4), (4, 8)) as world:
        session = await world.session(wait_s=600)
        found = await greedy(session, PROMPT, 5)
        async with trio.open_nursery() as nursery, AsyncExitStack() as stack:
            for _ in range(8):
                await goes_on(session, found, 1, nursery, away(world, stack, 5.0))
        assert found == greedy_reference(PROMPT, 13)


async def test_the_last_node_is_not_banned_out_of_reach(clock: trio.testing.MockClock) -> None:
    """A new session without time to wait takes a node that is banned, if it answers and nobody else serves."""
    async with swarm_of((0, 4), (4, 8)) as world:
        last = world.nodes[1].peer
        for _ in range(4):
            world.view.bans.ban(last, trio.current_time(), honest=True)
            world.view.bans.answered(last, trio.current_time())
        assert world.view.bans.banned(last, trio.current_time())
        session = await world.session()
        assert await greedy(session, PROMPT, 3) == greedy_reference(PROMPT, 3)


async def test_the_least_guilty_is_tried_first(clock: trio.testing.MockClock) -> None:
    """Of banned nodes the honest one serves what is missing, and nothing of what others serve."""
    async with swarm_of((0, 4), (2, 8), (2, 8), (0, 8), slow=[1]) as world:
        first, honest, liar, other = world.nodes
        bans, now = world.view.bans, trio.current_time()
        for _ in range(4):
            bans.ban(honest.peer, now, honest=True)
        bans.ban(liar.peer, now, honest=False)
        bans.ban(other.peer, now, honest=False)
        for node in (honest, liar, other):
            bans.answered(node.peer, now)
        await trio.sleep(14.9)
        route = world.view.plan(MANIFEST.digest, Need(ALL, MANIFEST.blocks, 1))
        assert [(hop.peer, hop.span) for hop in route.hops] == [
            (first.peer, Span(0, 4)),
            (honest.peer, Span(4, 8)),
        ]


async def test_a_liar_is_not_asked_at_once(clock: trio.testing.MockClock) -> None:
    """Who broke the rules is left alone for a first ban, also where nobody else serves; then it may try again."""
    async with swarm_of((0, 8)) as world:
        world.view.bans.ban(world.nodes[0].peer, trio.current_time(), honest=False)
        with pytest.raises(NoRoute):
            await world.session()
        before = trio.current_time()
        await world.session(wait_s=30)
        assert 10 < trio.current_time() - before < 16
