"""The engine's loop and those who are expected: batches merge, and nobody holds others up for long."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from node.compute.company import SLACK, TRIPS
from node.compute.interfaces import Call
from node.compute.loop import EngineLoop, Given, Outcome
from node.compute.measure import Speed
from node.compute.scheduler import Owner, Piece, Scheduler
from node.compute.sizing import Sizer
from protocol.candidates import Want
from protocol.model import Span
from tests.node.fakes import STAGES, FakeCache, FakeEngine, ManualExecutor, token_rows

# A step takes so long that whatever a test does is quick.
TRIP_S = 1.0
SPEED = Speed(decode_ms_per_block=100_000.0, prefill_ms_per_token_block=1.0, head_ms=0.0)


class Session:
    """A session that decodes; see `node.compute.loop.Runnable`."""

    def __init__(self, key: int, loop: EngineLoop, cache: FakeCache) -> None:
        self.key = key
        self.owner = Owner(str(key), str(key))
        self.given = 0
        self._loop = loop
        self._cache = cache
        self._steps = 0

    def step(self, rows: int = 1) -> None:
        """Ask for the next one."""
        self._rows = token_rows([1] * rows)
        self._loop.submit(self, self._steps, rows)
        self._steps += 1

    def step_if_away(self) -> None:
        """The same, unless one is here."""
        if self.given == self._steps:
            self.step()

    def prepare(self, piece: Piece) -> list[Call]:
        """See `node.compute.loop.Runnable`."""
        return [Call(self._cache, self._cache.length, self._rows, Want(top=1))]

    def take(self, piece: Piece, outcome: Outcome[Given], *, alone: bool) -> None:
        """See `node.compute.loop.Runnable`."""
        assert outcome.error is None
        self.given += 1

    def pass_on(self) -> None:
        """See `node.compute.loop.Runnable`."""


class Bench:
    """A loop over a fake engine, and sessions."""

    def __init__(self, sessions: int, speed: Speed | None = SPEED) -> None:
        self.engine = FakeEngine(Span(0, STAGES))
        self.executor = ManualExecutor()
        sizer = None if speed is None else Sizer(speed, 1)
        self.loop = EngineLoop(self.engine, self.executor, Scheduler(), sizer)
        self.sessions = [
            Session(key, self.loop, self.engine.new_cache(self.engine.span)) for key in range(sessions)
        ]

    def run(self) -> int:
        """One batch; how many were in it."""
        self.executor.run_one()
        return self.engine.batches[-1]

    async def turn(self) -> None:
        """One batch; a second later all that have nothing here ask for more."""
        self.run()
        await trio.sleep(TRIP_S)
        for session in self.sessions:
            session.step_if_away()

    async def acquaint(self) -> None:
        """Turns, until all are known; all are away then."""
        for session in self.sessions:
            session.step_if_away()
        for _ in range(4 * TRIPS):
            await self.turn()
        assert self.run() == len(self.sessions)


@pytest.fixture
def clock() -> trio.testing.MockClock:
    """Time passes when everybody waits."""
    return trio.testing.MockClock(autojump_threshold=0)


async def test_a_batch_waits_for_those_who_are_expected(clock: trio.testing.MockClock) -> None:
    """And begins with the last of them, not before."""
    bench = Bench(3)
    await bench.acquaint()
    first, second, third = bench.sessions
    began = trio.current_time()
    first.step()
    second.step()
    assert not bench.executor.queue
    third.step()
    assert bench.run() == 3
    assert trio.current_time() == began


async def test_two_groups_become_one(clock: trio.testing.MockClock) -> None:
    """Of which one is computed while the other is on its way, as soon as these know each other."""
    bench = Bench(2)
    for session in bench.sessions:
        session.step()
    for _ in range(4 * TRIPS):
        await bench.turn()
    assert bench.engine.batches[: 2 * TRIPS] == [1] * 2 * TRIPS
    assert bench.engine.batches[-TRIPS:] == [2] * TRIPS


async def test_who_does_not_come_is_waited_for_once(clock: trio.testing.MockClock) -> None:
    """And no longer than a part of what the two would save each other."""
    bench = Bench(2)
    await bench.acquaint()
    one, other = bench.sessions
    one.step()
    assert not bench.executor.queue
    await trio.sleep(SLACK * TRIP_S + 0.1)
    assert bench.run() == 1
    for _ in range(3):
        one.step()
        assert bench.run() == 1
    other.step()
    assert bench.run() == 1


async def test_who_ends_is_waited_for_no_more(clock: trio.testing.MockClock) -> None:
    """The batch begins at once."""
    bench = Bench(3)
    await bench.acquaint()
    one, other, third = bench.sessions
    one.step()
    bench.loop.drop(third)
    assert not bench.executor.queue
    bench.loop.drop(other)
    assert bench.run() == 1


async def test_a_batch_whose_sessions_end_while_it_waits_is_none(clock: trio.testing.MockClock) -> None:
    """And the next one begins as ever."""
    bench = Bench(3)
    await bench.acquaint()
    one, *others = bench.sessions
    one.step()
    for session in (one, *others):
        bench.loop.drop(session)
    assert not bench.executor.queue
    one.step()
    assert bench.run() == 1


async def test_a_piece_of_a_prompt_waits_for_a_token_too(clock: trio.testing.MockClock) -> None:
    """They share a batch, where each would wait for one of the other's."""
    bench = Bench(2)
    await bench.acquaint()
    decodes, asks = bench.sessions
    asks.step(rows=200)
    assert not bench.executor.queue
    decodes.step()
    assert bench.run() == 2


@pytest.mark.parametrize("speed", [None, Speed(1.0, 5.0, 0.0)], ids=["unmeasured", "rows cost what steps do"])
async def test_where_company_saves_nothing_nobody_waits(
    speed: Speed | None, clock: trio.testing.MockClock
) -> None:
    """Every batch begins at once."""
    bench = Bench(2, speed)
    for session in bench.sessions:
        session.step()
    for _ in range(4 * TRIPS):
        await bench.turn()
    assert set(bench.engine.batches) == {1}
