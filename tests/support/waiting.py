"""Wait for a condition with a deadline, instead of sleeping and hoping: `eventually` in trio, else `block_until`."""

import time
from collections.abc import Awaitable, Callable
from inspect import isawaitable

import trio

POLL_S = 0.01  # short beside any deadline, long beside a scheduler's tick
WITHIN_S = 5.0  # where a test says nothing: for what a machine that is not busy does in milliseconds


async def eventually(
    predicate: Callable[[], object | Awaitable[object]], within_s: float = WITHIN_S, what: str = ""
) -> None:
    """Return as soon as `predicate` (sync or async) is true.

    Raises: AssertionError when it is not within `within_s` of trio's clock, so virtual time works too.
    An exception from `predicate` passes through at once.
    """
    with trio.move_on_after(within_s):
        while True:
            value = predicate()
            if isawaitable(value):
                value = await value
            if value:
                return
            await trio.sleep(POLL_S)
    raise AssertionError(f"not within {within_s} s: {what or predicate}")


def block_until(predicate: Callable[[], object], within_s: float = WITHIN_S, what: str = "") -> None:
    """`eventually` for tests without an event loop: blocks the calling thread, by the wall clock."""
    deadline = time.monotonic() + within_s
    while not predicate():
        if time.monotonic() >= deadline:
            raise AssertionError(f"not within {within_s} s: {what or predicate}")
        time.sleep(POLL_S)
