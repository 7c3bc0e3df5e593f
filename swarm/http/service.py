"""All that serves requests: the place in the swarm, the line, idle sessions; and asyncio's way to them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import trio

from protocol.plain import plain
from swarm.client import Client
from swarm.events import Event
from swarm.http import limits
from swarm.http.answering import Answering, Said, Tally, encode
from swarm.http.asking import Ask, Conversation
from swarm.http.bridge import Bridge, Stream
from swarm.http.line import Line
from swarm.http.place import Enter, Place
from swarm.http.pool import Pool
from swarm.http.state import News, State


class Service:
    """Lives in the trio loop while `run` runs; all else is called from asyncio's."""

    def __init__(self, bridge: Bridge, enter: Enter, line: Line, tally: Tally) -> None:
        self.place = Place(enter, self._heard)
        self.line = line
        self.pool = Pool()
        self._bridge = bridge
        self._state = State(line, self.pool)
        self._answering = Answering(self.place, line, self.pool, tally)

    async def run(self) -> None:
        """Enter the swarm and serve until cancelled. Raises: ConfigError, where it cannot be entered ever."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.pool.run)
            nursery.start_soon(self._keep_map)
            await self.place.run()

    @property
    def client(self) -> Client:
        """Whose numbers may be read from any thread; what it does is for the trio loop. Raises: ApiError, 503."""
        return self.place.client

    @property
    def model(self) -> str:
        """What the served model is called. Raises: ApiError, 503, while there is none."""
        return plain(self.client.model.name)

    @property
    def suggested(self) -> Mapping[str, float]:
        """How the model suggests that tokens are chosen. Raises: ApiError, 503."""
        return self.client.text.suggested

    def ask(self, asker: str, *asks: Ask) -> Stream[Said]:
        """What comes of them, as it comes; the caller reads it to its end or closes it. `asker`: whose turn it is."""

        async def answer(send: Callable[[Said], Awaitable[None]]) -> None:
            with self._state.under_way.heard(send) as sending:
                await self._answering.answer(asks, asker, sending)

        return self._bridge.stream(answer, limits.PIECES_AHEAD)

    async def tokens(self, prompt: str | Conversation) -> list[int]:
        """The ids of a prompt. Raises: ApiError; ConfigError; what the text process raises."""
        return await self._bridge.call(encode, self.client, prompt)

    async def text(self, tokens: list[int]) -> str:
        """The text of ids. Raises: ApiError; what the text process raises."""
        return await self._bridge.call(self.client.text.decode, tokens)

    @property
    def watched(self) -> bool:
        """Whether any page looks on."""
        return self._state.watched

    async def health(self) -> dict[str, Any]:
        """See `State`."""
        return await self._of_state(self._state.health)

    async def ready(self) -> dict[str, Any]:
        """See `State`. Raises: ApiError, 503."""
        return await self._of_state(self._state.ready)

    async def status(self) -> dict[str, Any]:
        """See `State`."""
        return await self._of_state(self._state.status)

    def watch(self) -> Stream[News]:
        """What changes, until it is closed. Raises: ApiError, 429, when it is read."""
        return self._bridge.stream(lambda send: self._state.watch(self.place, send), limits.EVENTS_AHEAD)

    async def _of_state(self, look: Callable[[Place], Awaitable[dict[str, Any]]]) -> dict[str, Any]:
        return await self._bridge.call(look, self.place)

    async def _keep_map(self) -> None:
        """Ask for the map as often as somebody looks at it; a node that does not answer holds nobody else up."""
        while True:
            await trio.sleep(limits.STATUS_S)
            await self.place.refresh(limits.STATUS_S if self._state.watched else limits.MAP_S)

    def _heard(self, event: Event) -> None:
        client = self.place.joined
        self._state.heard(event, client.model.blocks if client is not None else 0)
