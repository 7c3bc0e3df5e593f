"""The map of a swarm, whatever models it serves: what `swarm status` shows."""

from __future__ import annotations

import random
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from protocol import identity
from protocol.hints import RecordRule
from protocol.records import Announcement
from protocol.transport.background import background_tasks
from swarm.cli.joined import places
from swarm.discovery import View


@dataclass(frozen=True, slots=True)
class Survey:
    """Who announces what, and how far away those are who answered."""

    announcements: tuple[Announcement, ...]
    rtt_ms: dict[str, float]
    doors: tuple[str, ...]  # where some of them were met


class Surveyor:
    """Takes surveys of one swarm."""

    def __init__(self, view: View) -> None:
        self._view = view

    async def survey(self) -> Survey:
        """Ask everybody known anew, and those that were silent, or only now heard of, once more."""
        await self._view.refresh()
        said = self._view.book.alive(time.time())
        if any(a.peer not in self._view.rtt_ms for a in said):
            await self._view.refresh()
        book = self._view.book
        return Survey(tuple(book.alive(time.time())), dict(self._view.rtt_ms), tuple(places(book)))


@asynccontextmanager
async def enter(addrs: Sequence[str]) -> AsyncIterator[Surveyor]:
    """Enter the swarm through any of the addresses. Raises: ConfigError, Unreachable."""
    from protocol.transport.libp2p import open_transport  # takes a second, which only this pays

    me = identity.generate()
    async with (
        open_transport(me.key, dht="client", validate=RecordRule()) as transport,
        background_tasks() as nursery,
    ):
        view = View(transport, nursery, random.Random())
        await view.enter(addrs)
        yield Surveyor(view)
