"""What a hop promises of sequences side by side in one session, and what it refuses."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from protocol import limits
from protocol.candidates import HIDDEN, Want
from protocol.messages import Ack, Error, Lane, Output, Relink, Step
from protocol.model import Span
from tests.node.conftest import Swarm
from tests.node.fakes import (
    STAGES,
    acked,
    expected_ids,
    hidden_of,
    hidden_rows,
    ids_of,
    opened,
    token_rows,
)
from tests.support.waiting import eventually

WHOLE = Span(0, STAGES)
FRONT, BACK = Span(0, 4), Span(4, STAGES)
LAST = Want("candidates", top=3)
TOKENS = [3, 1, 4, 1, 5]


def lane_step(
    number: int, rows: list[int], *lanes: Lane, want: Want = LAST, ended: tuple[int, ...] = ()
) -> Step:
    """A step of these lanes."""
    return Step(number, lanes[0].position, token_rows(rows), want, None, lanes, ended)


@pytest.fixture
def clock() -> trio.testing.MockClock:
    """Time passes when everybody waits."""
    return trio.testing.MockClock(autojump_threshold=0)


async def test_each_lane_has_its_own_answer(swarm: Swarm) -> None:
    """One output for all, in the order of the rows; parents are as they were before; one ack."""
    node = await swarm.node(WHOLE)
    client = await opened(await swarm.client(node), WHOLE)
    await client.step(0, 0, token_rows(TOKENS), LAST)
    await client.gather(acked(0))
    await client.send(lane_step(1, [9, 8, 2], Lane(7, 0, 5, 1), Lane(0, None, 3, 1), Lane(300, 0, 4, 1)))
    output = await client.expect(Output)
    held = [[*TOKENS, 9], [*TOKENS[:3], 8], [*TOKENS[:4], 2]]
    assert ids_of(output) == [expected_ids(each)[-1] for each in held]
    assert (output.number, output.position) == (1, 5)
    assert (await client.expect(Ack)).number == 1
    assert node.engine.batches == [1, 3]
    await client.send(lane_step(2, [6, 7], Lane(300, None, 5, 2), ended=(7,), want=Want(top=3, every=True)))
    assert ids_of(await client.expect(Output)) == expected_ids([*held[2], 6, 7])[-2:]
    assert [cache.closed for cache in node.engine.caches] == [False, True, False]
    await client.expect(Ack)
    await client.step(3, 4, token_rows([5]), LAST)
    assert ids_of(await client.expect(Output)) == [expected_ids([*held[1], 5])[-1]]


async def test_all_is_given_back(swarm: Swarm) -> None:
    """A seat is charged whole pages for each lane; with the session all of it comes back."""
    node = await swarm.node(WHOLE, kv_tokens=3000)
    client = await opened(await swarm.client(node), WHOLE, max_tokens=600)
    await client.step(0, 0, token_rows(TOKENS), LAST)
    await client.gather(acked(0))
    assert node.budget.free == 3000 - 256
    await client.send(lane_step(1, [1, 2, 3], *(Lane(lane, 0, 5, 1) for lane in (1, 2, 3))))
    await client.gather(acked(1))
    assert node.budget.free == 3000 - 4 * 256
    await client.channel.stream.finish()
    await eventually(lambda: node.budget.free == 3000)
    assert all(cache.closed for cache in node.engine.caches)


WRONG = [
    ([1], [Lane(3, None, 5, 1)], ()),  # of nobody
    ([1], [Lane(3, 9, 5, 1)], ()),
    ([1], [Lane(1, None, 3, 1)], ()),  # back to before it began
    ([1], [Lane(2, 1, 4, 1)], ()),  # begins where its parent did
    ([1], [Lane(2, 0, 6, 1)], ()),  # with more than its parent has
    ([1], [Lane(0, 1, 5, 1)], ()),  # lane 0 anew
    ([1], [Lane(1, 1, 5, 1)], ()),
    ([1, 2], [Lane(1, None, 5, 1), Lane(1, None, 6, 1)], ()),  # one twice
    ([1, 2], [Lane(1, None, 5, 1)], ()),  # rows of nobody
    ([1], [Lane(1, None, 5, 1), Lane(0, None, 5, 0)], ()),  # a lane of no rows
    ([1], [Lane(1, None, 5, 1)], (1,)),  # that has ended
    ([1], [Lane(1, None, 5, 1)], (0,)),
    ([1] * 63, [Lane(lane, 0, 5, 1) for lane in range(2, 65)], ()),  # too many
    ([1] * 60, [Lane(1, None, 5, 60)], ()),  # past what was asked for
]


@pytest.mark.parametrize(("rows", "lanes", "ended"), WRONG)
async def test_lanes_that_cannot_be(
    swarm: Swarm, rows: list[int], lanes: list[Lane], ended: tuple[int, ...]
) -> None:
    """They end their own session, named, and nothing of it stays."""
    node = await swarm.node(WHOLE)
    client = await opened(await swarm.client(node), WHOLE)
    await client.step(0, 0, token_rows(TOKENS), LAST)
    await client.send(lane_step(1, [9], Lane(1, 0, 4, 1)))
    await client.gather(acked(1))
    await client.send(lane_step(2, rows, *lanes, ended=ended))
    error = await client.expect(Error)
    assert (error.code, error.elsewhere) == ("bad_step", False)
    await client.ended()
    await eventually(lambda: node.budget.free == node.budget.total)
    assert all(cache.closed for cache in node.engine.caches)


async def test_a_client_carries_lane_0(swarm: Swarm) -> None:
    """Of a hop whose results come back only its rows do, also those of steps with others'."""
    node = await swarm.node(FRONT)
    client = await opened(await swarm.client(node), FRONT, bridged=True)
    await client.step(0, 0, token_rows(TOKENS), HIDDEN)
    await client.gather(acked(0))
    await client.send(lane_step(1, [9, 8], Lane(1, 0, 5, 1), Lane(0, None, 4, 1), want=HIDDEN))
    output = await client.expect(Output)
    assert output.position == 4
    assert hidden_of(output) == hidden_rows([*TOKENS[:4], 8], 4).numpy()[-1:].tolist()
    await client.expect(Ack)
    await client.send(lane_step(2, [9], Lane(1, None, 6, 1), want=HIDDEN))
    assert (await client.expect(Ack)).number == 2


async def test_a_replacement_is_sent_what_stands(swarm: Swarm) -> None:
    """By a relink: the lanes that are there, each row once, and what the one before had of others no more."""
    front, back = await swarm.node(FRONT), await swarm.node(BACK)
    first, second = await swarm.client(front), await swarm.client(back)
    await opened(first, FRONT, bridged=True)
    await first.step(0, 0, token_rows(TOKENS), LAST)
    await first.send(lane_step(1, [9, 8, 7], Lane(1, 0, 5, 1), Lane(2, 0, 5, 1), Lane(3, 0, 5, 1)))
    await first.send(lane_step(2, [6, 5], Lane(4, 2, 6, 1), Lane(3, None, 6, 1), ended=(1,)))
    await first.send(lane_step(3, [2, 1], Lane(4, None, 7, 1), Lane(3, None, 7, 1), ended=(2,)))
    await first.gather(acked(3))
    await opened(second, BACK)
    await first.send(Relink(back.as_next(second), False, 3, STAGES))
    output = [each for each in await second.gather(acked(3)) if isinstance(each, Output)]
    held = [[*TOKENS, 8, 6, 2], [*TOKENS, 7, 5, 1]]
    assert ids_of(output[0]) == [expected_ids(each)[-1] for each in held]
    assert sum(rows for _, rows in back.engine.steps) == len(TOKENS) + 6
    assert len([cache for cache in back.engine.caches if not cache.closed]) == 3


async def test_who_begins_lanes_without_end_is_slowed_down(
    swarm: Swarm, clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By what an engine may have to copy for them: the hop reads on once it is paid for."""
    monkeypatch.setattr("protocol.limits.FORK_TOKENS", 1)
    client = await opened(await swarm.client(await swarm.node(WHOLE, kv_tokens=10_000)), WHOLE)
    await client.step(0, 0, token_rows(TOKENS), LAST)
    await client.gather(acked(0))
    began, lanes = trio.current_time(), [Lane(lane, 0, 5, 1) for lane in range(1, 61)]
    await client.send(lane_step(1, [1] * 60, *lanes))
    await client.gather(acked(1))
    assert trio.current_time() - began >= (60 * 5 - limits.FORKS_BURST) / limits.FORKS_PER_S
