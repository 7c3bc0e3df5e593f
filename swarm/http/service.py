"""All that serves requests: the place in the swarm, the line, idle sessions; and asyncio's way to them."""

from __future__ import annotations

import trio

from protocol.plain import plain
from swarm.client import Client
from swarm.events import Event
from swarm.http import limits
from swarm.http.answering import Answering, Said, Tally
from swarm.http.asking import Ask
from swarm.http.bridge import Bridge, Stream
from swarm.http.line import Line
from swarm.http.place import Enter, Place
from swarm.http.pool import Pool


class Service:
    """Lives in the trio loop while `run` runs; `ask` and `model` are for the other one."""

    def __init__(self, bridge: Bridge, enter: Enter, line: Line, tally: Tally) -> None:
        self.bridge = bridge
        self.place = Place(enter, self._heard)
        self.line = line
        self.pool = Pool()
        self._answering = Answering(self.place, self.line, self.pool, tally)

    async def run(self) -> None:
        """Enter the swarm and serve until cancelled. Raises: ConfigError, where it cannot be entered ever."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.pool.run)
            await self.place.run()

    def model(self) -> str:
        """What the served model is called. Raises: ApiError, 503, while there is none."""
        return plain(self.place.client.model.name)

    def client(self) -> Client:
        """Whose numbers may be read from any thread; what it does is for the trio loop. Raises: ApiError, 503."""
        return self.place.client

    def ask(self, *asks: Ask) -> Stream[Said]:
        """What comes of them, as it comes; the caller reads it to its end or closes it."""
        return self.bridge.stream(lambda send: self._answering.answer(asks, send), limits.PIECES_AHEAD)

    def _heard(self, event: Event) -> None:
        return
