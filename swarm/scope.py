"""A nursery for background work that does not change the shape of errors."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio


@asynccontextmanager
async def background_nursery() -> AsyncIterator[trio.Nursery]:
    """A nursery whose tasks are cancelled when the block ends.

    What the block raises comes out as it is, not inside an exception group; only a crash of a background task,
    a bug of ours, comes out as a group.
    """
    failure: BaseException | None = None
    async with trio.open_nursery() as nursery:
        try:
            yield nursery
        except BaseException as error:  # noqa: BLE001 - raised again below, Cancelled too
            failure = error
        nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure
