"""The place in the swarm: entered as soon as can be, and until then the reason why it is not. In the trio loop."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Final

import trio

from protocol.errors import ConfigError, NoRoute, SwarmError, leaves, unwrapped
from swarm.client import Client
from swarm.events import Event, OnEvent
from swarm.http import limits
from swarm.http.errors import unavailable

Enter = Callable[[OnEvent], AbstractAsyncContextManager[Client]]

_log: Final = logging.getLogger(__name__)
_JOINING: Final = "the swarm is being entered"


class Place:
    """Holds the client while `run` runs. `tell` gets everything that happens beside the answers."""

    def __init__(self, enter: Enter, tell: OnEvent) -> None:
        self._enter = enter
        self._tell = tell
        self._client: Client | None = None
        self._entered = trio.Event()
        self._why = _JOINING
        self.on_entered: Callable[[Client], None] | None = None
        self._mapped = 0.0  # when the map was asked for last, by trio's clock

    @property
    def joined(self) -> Client | None:
        """The client, once there is one."""
        return self._client

    @property
    def why(self) -> str:
        """Why there is none yet, in a line."""
        return self._why

    @property
    def client(self) -> Client:
        """The client. Raises: ApiError, 503, while there is none."""
        if self._client is None:
            raise unavailable(self._why, "joining", limits.JOIN_EVERY_S)
        return self._client

    async def wait_entered(self) -> Client:
        """Return as soon as there is a client."""
        await self._entered.wait()
        return self.client

    async def run(self) -> None:
        """Enter, and try again for as long as nobody answers. Raises: ConfigError, where that would be in vain."""
        while True:
            try:
                async with self._enter(self._heard) as client:
                    self._client, self._why = client, ""
                    self._mapped = trio.current_time()
                    self._entered.set()
                    if self.on_entered is not None:
                        self.on_entered(client)
                    await trio.sleep_forever()
            except* SwarmError as group:
                error = unwrapped(group)
                if any(isinstance(leaf, ConfigError) for leaf in leaves(group)) or self._client is not None:
                    raise error from None
                self._why = str(error)
                _log.warning("not in the swarm yet: %s", self._why)
            await trio.sleep(limits.JOIN_EVERY_S)

    async def refresh(self, age_s: float) -> None:
        """See that the map is at most so old."""
        if self._client is None or trio.current_time() - self._mapped < age_s:
            return
        self._mapped = trio.current_time()
        try:
            await self._client.refresh()
        except NoRoute as error:
            _log.info("the map was not refreshed: %s", error)

    def _heard(self, event: Event) -> None:
        self._tell(event)
