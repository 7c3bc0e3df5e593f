"""What one task handles in order."""

from __future__ import annotations

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from protocol.talk.outbox import Outbox


async def test_what_is_posted_is_handled_in_order() -> None:
    """It is idle again once the last is handled; who posts meanwhile is not overtaken."""
    outbox = Outbox[int]()
    handled: list[int] = []
    go_on = trio.Event()

    async def handle(item: int) -> None:
        handled.append(item)
        await go_on.wait()

    assert outbox.is_idle
    async with trio.open_nursery() as nursery:
        outbox.post(1)
        assert not outbox.is_idle
        nursery.start_soon(outbox.run, handle)
        await wait_all_tasks_blocked()
        assert handled == [1]
        assert not outbox.is_idle
        outbox.post(2)
        outbox.post(3)
        go_on.set()
        await wait_all_tasks_blocked()
        assert handled == [1, 2, 3]
        assert outbox.is_idle
        outbox.post(4)
        outbox.close()
    assert handled == [1, 2, 3]
    assert not outbox.is_idle
    outbox.post(5)
    await outbox.run(handle)
    assert handled == [1, 2, 3]


async def test_an_error_is_raised_where_it_is_handled() -> None:
    """And what waits behind it stays."""
    outbox = Outbox[str]()
    outbox.post("bad")
    outbox.post("good")
    handled: list[str] = []

    async def handle(item: str) -> None:
        if item == "bad":
            raise ValueError(item)
        handled.append(item)
        outbox.close()

    with pytest.raises(ValueError, match="bad"):
        await outbox.run(handle)
    await outbox.run(handle)
    assert handled == ["good"]
