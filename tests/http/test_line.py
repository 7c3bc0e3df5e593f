"""The line: who has a place, who waits, who is told to come again."""

from __future__ import annotations

from http import HTTPStatus

import pytest
import trio
import trio.testing

from swarm.http import limits
from swarm.http.errors import ApiError
from swarm.http.line import Line


async def test_first_come_first_served() -> None:
    """One that needs more places is not overtaken by those that need less."""
    line, order, leave = Line(2, 8), list[str](), trio.Event()

    async def take(name: str, places: int, until: trio.Event) -> None:
        async with line.place(places):
            order.append(name)
            await until.wait()

    async with trio.open_nursery() as nursery:
        go_on = trio.Event()
        for name, places, until in (("first", 1, leave), ("two", 2, go_on), ("one", 1, go_on)):
            nursery.start_soon(take, name, places, until)
            await trio.testing.wait_all_tasks_blocked()
        assert (line.active, line.waiting, order) == (1, 2, ["first"])
        leave.set()
        await trio.testing.wait_all_tasks_blocked()
        assert (line.active, line.waiting, order) == (2, 1, ["first", "two"])
        go_on.set()
    assert (line.active, line.waiting, order) == (0, 0, ["first", "two", "one"])


async def test_who_finds_it_full_is_told_when_to_come_again() -> None:
    """429, with seconds; and nothing is kept of it."""
    line = Line(1, 0)
    async with line.place():
        with pytest.raises(ApiError) as refused:
            async with line.place():
                pass
    assert refused.value.status == HTTPStatus.TOO_MANY_REQUESTS
    assert int(refused.value.headers["retry-after"]) >= 1
    assert (line.active, line.waiting) == (0, 0)


async def test_who_waits_too_long_is_told(autojump_clock: trio.testing.MockClock) -> None:
    """503, and the place that becomes free afterwards is somebody else's."""
    line = Line(1, 1)
    async with line.place():
        with pytest.raises(ApiError) as refused:
            async with line.place():
                pass
    assert trio.current_time() >= limits.QUEUED_S
    assert refused.value.status == HTTPStatus.SERVICE_UNAVAILABLE
    assert (line.active, line.waiting) == (0, 0)


async def test_who_leaves_when_called_gives_its_place_on() -> None:
    """Whichever comes first, the call or the end of patience: no place is lost."""
    for called_first in (True, False):
        line, leave = Line(1, 2), trio.Event()

        async def hold(line: Line = line, leave: trio.Event = leave) -> None:
            async with line.place():
                await leave.wait()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(hold)
            await trio.testing.wait_all_tasks_blocked()
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as waiting:
                    waiting.start_soon(hold)
                    await trio.testing.wait_all_tasks_blocked()
                    for act in (leave.set, scope.cancel) if called_first else (scope.cancel, leave.set):
                        act()
        assert (line.active, line.waiting) == (0, 0)


async def test_places_go_to_whoever_has_the_fewest() -> None:
    """One who asks for many answers at once holds up his own, whoever came first."""
    line, order = Line(2, 9), list[str]()
    leave = {name: trio.Event() for name in ("a1", "a2", "a3", "a4", "b1")}

    async def take(name: str) -> None:
        async with line.place(asker=name[0]):
            order.append(name)
            await leave[name].wait()

    async with trio.open_nursery() as nursery:
        for name in leave:
            nursery.start_soon(take, name)
            await trio.testing.wait_all_tasks_blocked()
        assert order == ["a1", "a2"]
        for name in ("a1", "b1", "a2", "a3", "a4"):
            leave[name].set()
            await trio.testing.wait_all_tasks_blocked()
    assert order == ["a1", "a2", "b1", "a3", "a4"]
    assert (line.active, line.waiting) == (0, 0)


async def test_nobody_takes_all_places_where_there_are_others() -> None:
    """The share of one is full: what is left waits for somebody else."""
    line, order = Line(4, 9, share=3), list[str]()

    async def take(name: str, leave: trio.Event) -> None:
        async with line.place(asker=name):
            order.append(name)
            await leave.wait()

    async with trio.open_nursery() as nursery:
        leave = trio.Event()
        for name in ("a", "a", "a", "a", "b"):
            nursery.start_soon(take, name, leave)
            await trio.testing.wait_all_tasks_blocked()
        assert order == ["a", "a", "a", "b"]
        leave.set()
    assert order == ["a", "a", "a", "b", "a"]


async def test_where_too_many_wait_the_last_of_the_most_gives_way() -> None:
    """Not the newcomer, if he has fewer in line."""
    line, told = Line(1, 2), list[str]()

    async def take(name: str) -> None:
        try:
            async with line.place(asker=name[0]):
                told.append(name)
        except ApiError as error:
            told.append(f"{name} {error.status}")

    async with line.place(asker="a"), trio.open_nursery() as nursery:
        for name in ("a1", "a2", "b1", "b2"):
            nursery.start_soon(take, name)
            await trio.testing.wait_all_tasks_blocked()
        assert told == ["a2 429", "b2 429"]
        nursery.cancel_scope.cancel()
    assert (line.active, line.waiting) == (0, 0)
