"""What there is to see of the swarm: who serves what, what happens, which answers come; as JSON and as a stream.

In the trio loop.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final

import trio

from protocol.errors import NoRoute
from protocol.plain import plain
from swarm.coverage import coverage_fields
from swarm.decoding import AUTO, STRATEGIES
from swarm.events import Event
from swarm.http import limits
from swarm.http.errors import ApiError, full
from swarm.http.forms import SSE, error_fields, event
from swarm.http.line import Line
from swarm.http.maps import commands, coverages, door, no_route, own_coverage
from swarm.http.outcome import event_fields
from swarm.http.place import Place
from swarm.http.pool import Pool
from swarm.http.under_way import UnderWay

# Those that need no second model.
_STRATEGIES: Final = [AUTO, *(name for name, kind in STRATEGIES.items() if not kind.needs_amateur)]


@dataclass(frozen=True, slots=True)
class News:
    """Something to tell a watcher: the whole state ("status"), an "event", or how an "answer" goes on."""

    name: str
    fields: dict[str, Any]


class State:
    """Looks at the swarm for whoever asks, and tells watchers what changes."""

    def __init__(self, line: Line, pool: Pool) -> None:
        self._line = line
        self._pool = pool
        self._watchers: set[trio.MemorySendChannel[News]] = set()
        self._number = 0  # of the events so far
        self._kept: deque[News] = deque(maxlen=limits.EVENTS_KEPT)
        self.under_way = UnderWay(lambda fields: self._tell(News("answer", fields)))

    @property
    def watched(self) -> bool:
        """Whether anybody is told what changes."""
        return bool(self._watchers)

    def heard(self, said: Event, blocks: int) -> None:
        """Tell it to all watchers, also to those who come a while later."""
        self._number += 1
        head = {"number": self._number, "at": round(time.time(), 3), "session": said.session}
        news = News("event", {**head, **event_fields(said, blocks)})
        self._kept.append(news)
        self._tell(news)

    def _tell(self, news: News) -> None:
        """Whoever lags behind loses it."""
        for watcher in tuple(self._watchers):
            try:
                watcher.send_nowait(news)
            except trio.WouldBlock:
                continue

    async def health(self, place: Place) -> dict[str, Any]:
        """Whether it is in the swarm, and whether all of the model is served."""
        client = place.joined
        if client is None:
            return {"status": "ok", "joined": False, "complete": False, "missing": [], "why": place.why}
        own = own_coverage(client)
        missing = [[hole.start, hole.stop] for hole in own.missing] if own else [[0, client.model.stages]]
        return {"status": "ok", "joined": True, "complete": not missing, "missing": missing}

    async def ready(self, place: Place) -> dict[str, Any]:
        """That the next answer has a route. Raises: ApiError, 503."""
        client = place.client
        try:
            route = await client.plan_route()
        except NoRoute as error:
            raise no_route(error, client) from error
        return {"status": "ok", "expected_ms": round(route.expected_ms, 3), "hops": len(route.hops)}

    async def status(self, place: Place) -> dict[str, Any]:
        """What `swarm status --json` says, and how much goes on here."""
        client = place.joined
        doing = {
            "answers": self._line.active,
            "places": self._line.places,
            "waiting": self._line.waiting,
            "idle_sessions": self._pool.size,
            "under_way": self.under_way.fields,
        }
        if client is None:
            return {"joined": False, "why": place.why, "model": None, "models": [], "doing": doing}
        model = {"name": plain(client.model.name), "digest": client.model.digest.hex()}
        models = [coverage_fields(each, door(client)) for each in coverages(client)]
        return {
            "joined": True,
            "why": "",
            "model": model,
            "models": models,
            "doing": doing,
            "strategies": _STRATEGIES,
            "commands": commands(client),
        }

    async def watch(self, place: Place, send: Callable[[News], Awaitable[None]]) -> None:
        """Send the state, the latest events, and from then on all that changes. Raises: ApiError, 429."""
        if len(self._watchers) >= limits.WATCHERS:
            raise full(f"{limits.WATCHERS} streams of events are open; close one", 5.0)
        told, heard = trio.open_memory_channel[News](limits.EVENTS_AHEAD)
        kept = tuple(self._kept)
        self._watchers.add(told)
        try:
            last = await self.status(place)
            await send(News("status", last))
            for news in kept:
                await send(News(news.name, {**news.fields, "past": True}))
            while True:
                found = await self.status(place)
                if found != last:
                    await send(News("status", found))
                    last = found
                with trio.move_on_after(limits.STATUS_S):
                    while True:
                        await send(await heard.receive())
        finally:
            self._watchers.discard(told)


class NewsWriter:
    """News as events of a stream."""

    media_type = SSE

    def frames(self, said: News) -> Iterable[str]:
        """See `Frames`."""
        yield event(said.name, said.fields)

    def broken(self, error: ApiError) -> str:
        """See `Frames`."""
        return event("error", error_fields(error))
