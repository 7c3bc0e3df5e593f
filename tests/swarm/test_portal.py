"""The background loop: results and errors come through, and everything ends."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio

from protocol.errors import LocalProtocolError, Unreachable
from swarm.portal import Portal


async def double(number: int) -> int:
    await trio.lowlevel.checkpoint()
    return 2 * number


async def fail() -> None:
    raise Unreachable("nobody there")


def test_calls_return_and_raise() -> None:
    """What the coroutine returns or raises, with the loop alive after an error."""
    with Portal() as portal:
        assert portal.call(double, 4) == 8
        with pytest.raises(Unreachable, match="nobody there"):
            portal.call(fail)
        assert portal.call(double, 5) == 10


def test_iteration_closes_what_it_leaves() -> None:
    """Values in order; leaving early runs the generator's clean-up before going on."""
    closed: list[int] = []

    async def count(most: int) -> AsyncGenerator[int, None]:
        try:
            for number in range(most):
                await trio.lowlevel.checkpoint()
                yield number
            await trio.sleep(0 if most < 100 else 3600)
        finally:
            closed.append(most)

    with Portal() as portal:
        assert list(portal.iterate(lambda: count(3))) == [0, 1, 2]
        for number in portal.iterate(lambda: count(100)):
            if number == 5:
                break
        assert closed == [3, 100]


def test_iteration_raises_after_the_values() -> None:
    """Text that came before an error is not lost."""

    async def breaks() -> AsyncGenerator[int, None]:
        yield 1
        raise Unreachable("gone")

    with Portal() as portal:
        values = portal.iterate(breaks)
        assert next(values) == 1
        with pytest.raises(Unreachable):
            next(values)


def test_context_managers_are_entered_and_left_in_one_task() -> None:
    """Also when the block raises; an error on the way in comes out."""
    seen: list[str] = []

    @asynccontextmanager
    async def room(error: Exception | None = None) -> AsyncIterator[str]:
        if error:
            raise error
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            yield "inside"
            nursery.cancel_scope.cancel()
        seen.append("left")

    with Portal() as portal:
        with portal.holding(room()) as value:
            assert value == "inside"
        assert seen == ["left"]
        with pytest.raises(KeyError), portal.holding(room()):
            raise KeyError
        with pytest.raises(Unreachable), portal.holding(room(Unreachable("no"))):
            pass


def test_ctrl_c_ends_the_call_not_the_loop() -> None:
    """KeyboardInterrupt cancels the work, waits for its clean-up, and the next call works."""
    cleaned: list[bool] = []

    async def hang() -> None:
        threading.Timer(0.05, os.kill, [os.getpid(), signal.SIGINT]).start()
        try:
            await trio.sleep_forever()
        finally:
            cleaned.append(True)

    with Portal() as portal:
        with pytest.raises(KeyboardInterrupt):
            portal.call(hang)
        assert cleaned == [True]
        assert portal.call(double, 1) == 2


def test_leaving_ends_what_still_runs() -> None:
    """Work in another thread's call is cancelled, and that thread is told."""
    outcome: list[BaseException] = []
    started = threading.Event()

    async def hang() -> None:
        started.set()
        await trio.sleep_forever()

    def other(portal: Portal) -> None:
        try:
            portal.call(hang)
        except LocalProtocolError as error:
            outcome.append(error)

    with Portal() as portal:
        thread = threading.Thread(target=other, args=[portal])
        thread.start()
        started.wait()
    thread.join(5)
    assert outcome
