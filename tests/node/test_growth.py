"""Sessions at a hop whose steps need more room than they hold."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from node.hop.admission import GROW_MOST_S, GROW_WAIT_S
from node.hop.seats import Room
from protocol.candidates import NOTHING, Want
from protocol.messages import Close, Error, Output, Ping, Pong
from protocol.model import Span
from tests.node.conftest import Node, Swarm
from tests.node.fakes import STAGES, Client, acked, ids_of, opened, run_whole, token_rows
from tests.support.waiting import eventually

WHOLE = Span(0, STAGES)
LAST = Want("candidates", top=3)
TOKENS = [(7 * i + 3) % 32 for i in range(255)]


@pytest.fixture
def clock() -> trio.testing.MockClock:
    """Time passes when everybody waits."""
    return trio.testing.MockClock(autojump_threshold=0)


async def with_a_page(swarm: Swarm, node: Node, *, max_tokens: int = 600) -> Client:
    """A session of a new peer, with a row less than a page."""
    client = await opened(await swarm.client(node), WHOLE, max_tokens=max_tokens)
    await client.step(0, 0, token_rows(TOKENS), NOTHING)
    await client.gather(acked(0))
    return client


async def keep_busy(client: Client) -> None:
    """Steps without a pause, at one position."""
    number = 1
    while True:
        await client.step(number, 254, token_rows([1]), NOTHING)
        await client.gather(acked(number))
        await trio.sleep(0.1)
        number += 1


async def test_steps_that_need_room_wait_for_it_in_order(swarm: Swarm, clock: trio.testing.MockClock) -> None:
    """Beside a session that computes, until it ends; pings are answered meanwhile, and those in the page computed."""
    node = await swarm.node(WHOLE)
    first, other = await with_a_page(swarm, node), await with_a_page(swarm, node)
    node.budget.room = Room(512)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(keep_busy, other)
        await first.step(1, 255, token_rows([9]), LAST)
        await first.gather(acked(1))
        await first.step(2, 256, token_rows([8, 7]), LAST)
        await first.step(3, 250, token_rows([6]), LAST)
        await first.send(Ping(1))
        assert await first.expect(Pong) == Pong(1, 4, 2)
        await trio.sleep(GROW_WAIT_S / 2)
        await first.send(Ping(2))
        assert await first.expect(Pong) == Pong(2, 4, 2)
        nursery.cancel_scope.cancel()
    await other.send(Close())
    outputs = [m for m in await first.gather(acked(3)) if isinstance(m, Output)]
    expected = [run_whole([*TOKENS, 9, 8, 7], STAGES, LAST), run_whole([*TOKENS[:250], 6], STAGES, LAST)]
    assert [ids_of(output) for output in outputs] == [found.ids.tolist() for found in expected]


async def test_who_gets_no_room_is_told_when_to_come_again(
    swarm: Swarm, clock: trio.testing.MockClock
) -> None:
    """Before its client thinks that the node is stuck; the others lose nothing by it."""
    node = await swarm.node(WHOLE)
    first, other = await with_a_page(swarm, node), await with_a_page(swarm, node)
    node.budget.room = Room(512)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(keep_busy, other)
        began = trio.current_time()
        await first.step(1, 255, token_rows([9, 8, 7]), LAST)
        error = await first.expect(Error)
        assert trio.current_time() - began <= GROW_MOST_S
        assert (error.code, error.elsewhere, error.retry_after_s > 0) == ("busy", True, True)
        await eventually(lambda: node.budget.free == 256)
        assert len(node.hop) == 1
        nursery.cancel_scope.cancel()


async def test_of_two_that_wait_the_younger_goes(swarm: Swarm, clock: trio.testing.MockClock) -> None:
    """Soon, and the other one goes on."""
    node = await swarm.node(WHOLE)
    first, second = await with_a_page(swarm, node), await with_a_page(swarm, node)
    node.budget.room = Room(512)
    began = trio.current_time()
    for client in (second, first):
        await client.step(1, 255, token_rows([9, 8, 7]), LAST)
    assert (await second.expect(Error)).code == "busy"
    assert ids_of(await first.expect(Output)) == run_whole([*TOKENS, 9, 8, 7], STAGES, LAST).ids.tolist()
    assert trio.current_time() - began < GROW_WAIT_S


async def test_who_grows_takes_the_seat_of_who_is_idle(swarm: Swarm, clock: trio.testing.MockClock) -> None:
    """Who is told that it gave way."""
    node = await swarm.node(WHOLE)
    idle, first = await with_a_page(swarm, node), await with_a_page(swarm, node)
    node.budget.room = Room(512)
    await trio.sleep(60)
    await first.step(1, 255, token_rows([9, 8, 7]), LAST)
    await first.expect(Output)
    assert (await idle.expect(Error)).code == "gave_way"


async def test_a_session_that_waits_for_room_may_end(swarm: Swarm, clock: trio.testing.MockClock) -> None:
    """Its step is forgotten, and nobody waits behind it."""
    node = await swarm.node(WHOLE)
    first, second = await with_a_page(swarm, node), await with_a_page(swarm, node)
    node.budget.room = Room(512)
    await first.step(1, 255, token_rows([9, 8, 7]), LAST)
    await first.send(Close())
    await second.step(1, 255, token_rows([9, 8, 7]), LAST)
    await second.expect(Output)
    await eventually(lambda: len(node.hop) == 1 and node.budget.free == 0)
