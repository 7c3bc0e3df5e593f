"""A nursery for what runs behind a context manager's back."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio


@asynccontextmanager
async def background_tasks() -> AsyncIterator[trio.Nursery]:
    """A nursery whose tasks end with the body; what the body raises passes as it is, not in a group.

    Only a crash of a background task, a bug of ours, comes out as a group.
    """
    failure: BaseException | None = None
    async with trio.open_nursery() as nursery:
        try:
            yield nursery
        except BaseException as error:  # noqa: BLE001 - raised again below, Cancelled and Ctrl-C too
            failure = error
        nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure
