"""Context managers with background work inside that do not change the shape of errors."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TypeVar

import trio

T = TypeVar("T")


@asynccontextmanager
async def unwrapped(manager: AbstractAsyncContextManager[T]) -> AsyncIterator[T]:
    """`manager`, but what the block raises comes out as it is, not inside the groups of the manager's nurseries.

    To the manager every end of the block is a regular one.
    """
    failure: BaseException | None = None
    async with manager as value:
        try:
            yield value
        except BaseException as error:  # noqa: BLE001 - raised again below, Cancelled too
            failure = error
    if failure is not None:
        raise failure


@asynccontextmanager
async def background_nursery() -> AsyncIterator[trio.Nursery]:
    """A nursery whose tasks are cancelled when the block ends.

    Only a crash of a background task, a bug of ours, comes out as a group.
    """
    async with unwrapped(_cancelled_at_end()) as nursery:
        yield nursery


@asynccontextmanager
async def _cancelled_at_end() -> AsyncIterator[trio.Nursery]:
    async with trio.open_nursery() as nursery:
        yield nursery
        nursery.cancel_scope.cancel()
