"""More sessions than there is room for: all come to their end, and each has its share meanwhile."""

from __future__ import annotations

import random
from contextlib import AsyncExitStack

import pytest
import trio
import trio.testing

from node.hop.admission import GROW_MOST_S
from node.hop.seats import Room
from protocol import identity as identities
from protocol.transport.background import background_tasks
from swarm.routing.view import View
from swarm.session.chain import SessionSpec
from swarm.session.session import Session
from tests.node.fakes import HIDDEN, MANIFEST, VOCAB
from tests.sim.world import ALL, World, greedy, greedy_reference, swarm_of
from tests.support.waiting import eventually

PROMPT = [(7 * i + 3) % 32 for i in range(250)]


@pytest.fixture
def clock() -> trio.testing.MockClock:
    """Time passes when everybody waits."""
    return trio.testing.MockClock(autojump_threshold=0)


def set_room(world: World, tokens: int) -> None:
    """Every node has so many tokens."""
    for node in world.nodes:
        node.hop._budget.room = Room(tokens)


async def another_client(stack: AsyncExitStack, world: World) -> View:
    """One more peer that knows the nodes."""
    transport = await stack.enter_async_context(
        world.network.transport(identities.generate().key, listen=False)
    )
    nursery = await stack.enter_async_context(background_tasks())
    view = View(transport, nursery, random.Random(3))
    await view.enter([world.nodes[0].transport.addrs[0]])
    return view


async def finished(
    view: View, number: int, told: list[str], opened: trio.Event | None = None, count: int = 12
) -> bool:
    """Whether a session over more than a page goes as the unsplit model does; why hops were replaced is told."""
    spec = SessionSpec(MANIFEST.digest, MANIFEST.blocks, VOCAB, HIDDEN, ALL, 512, wait_s=600.0)
    session = Session(view, spec, lambda _: None)
    await session.open()
    prompt = [number % 32, *PROMPT[1:]]
    if opened is not None:
        await session.step(prompt[:100])
        await opened.wait()
    found = await greedy(session, prompt[session.length :], count)
    told += [event.reason for event in session.reroutes]
    await session.aclose()
    return found == greedy_reference(prompt, count)


@pytest.mark.slow
async def test_two_hundred_sessions_with_room_for_twenty(clock: trio.testing.MockClock) -> None:
    """All at once, of ten clients: all come to their end, and hardly a row is computed twice."""
    async with swarm_of((0, 8), step_s=0.001) as world, AsyncExitStack() as stack:
        set_room(world, 20 * 512)
        views = [await another_client(stack, world) for _ in range(10)]
        right: list[bool] = []

        async def answer(number: int) -> None:
            right.append(await finished(views[number % 10], number, []))

        async with trio.open_nursery() as nursery:
            for number in range(200):
                nursery.start_soon(answer, number)
        assert right == [True] * 200
        for node in world.nodes:
            assert sum(rows for _, rows in node.engine.steps) < 1.1 * 200 * len(PROMPT + [0] * 11)


async def test_sessions_that_grow_beyond_what_there_is(clock: trio.testing.MockClock) -> None:
    """Each has begun, and there is room for few of them to go on: some are told when to come again, and all end."""
    async with swarm_of((0, 4), (4, 8), step_s=0.001) as world, AsyncExitStack() as stack:
        set_room(world, 16 * 256 + 640)
        right: list[bool] = []
        told: list[str] = []
        opened = trio.Event()
        views = [await another_client(stack, world) for _ in range(16)]

        async def answer(number: int) -> None:
            right.append(await finished(views[number], number, told, opened, 80))

        async with trio.open_nursery() as nursery:
            for number in range(16):
                nursery.start_soon(answer, number)
            await eventually(lambda: all(len(node.engine.steps) == 16 for node in world.nodes), 60)
            opened.set()
        assert right == [True] * 16
        assert any("others have all there is" in reason for reason in told)
        assert len(told) < 16
        await eventually(lambda: not any(len(node.hop) for node in world.nodes))


async def test_who_has_no_room_to_go_on_goes_elsewhere(clock: trio.testing.MockClock) -> None:
    """Where another node serves the same stages it is had at once."""
    async with swarm_of((0, 8), (0, 8), slow=[1]) as world:
        session = await world.session(max_tokens=1000)
        begin = await greedy(session, PROMPT, 3)
        budget = world.nodes[0].hop._budget
        budget.room = Room(256)
        began = trio.current_time()
        assert begin + await greedy(session, begin[-1:], 9) == greedy_reference(PROMPT, 12)
        assert trio.current_time() - began < 2 * GROW_MOST_S
        assert [event.reason for event in session.reroutes] == ["you have all there is for now: 256 tokens"]
        assert world.bans.noted == []
