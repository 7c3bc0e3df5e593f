"""What a session's client is told."""

from __future__ import annotations

import trio

from node.hop.backlog import Backlog
from node.hop.life import Event, Life, State
from protocol import limits
from protocol.errors import LocalProtocolError, Lost
from protocol.messages import Error, Message
from protocol.talk.channel import Channel


class Answers:
    """Sends at once, or soon with others. A client that is gone, or takes nothing for long, ends the session."""

    def __init__(self, client: Channel, life: Life, backlog: Backlog) -> None:
        self._client = client
        self._life = life
        self._backlog = backlog
        self._later: list[Message] = []
        self._later_waits = trio.Event()

    async def send(self, *messages: Message) -> None:
        """Send them together; returns when they are sent, or the session ends."""
        try:
            with trio.move_on_after(limits.TAKE_WITHIN_S) as taking:
                await self._client.send(*messages)
            if taking.cancelled_caught:
                self._life.fail(Error("unread", f"nothing was taken for {limits.TAKE_WITHIN_S:g} s", False))
                await trio.lowlevel.checkpoint()
        except Lost:
            self._life.happens(Event.LOSS)
            await trio.lowlevel.checkpoint()
        except LocalProtocolError as error:
            self._raise_if_serving(error)

    def send_now(self, *messages: Message) -> bool:
        """Send them together before any other task runs; False, and nothing is sent, where they have to wait."""
        try:
            return self._client.send_now(*messages)
        except LocalProtocolError as error:
            self._raise_if_serving(error)
            return True

    def send_later(self, message: Message) -> None:
        """Leave it to `run`; returns at once."""
        self._later.append(message)
        self._backlog.acks = len(self._later)
        self._later_waits.set()

    async def run(self) -> None:
        """Send what may wait, a little later and together, for ever."""
        while True:
            await self._later_waits.wait()
            await trio.sleep(limits.ACK_DELAY_S)
            messages, self._later = self._later, []
            self._later_waits = trio.Event()
            self._backlog.acks_told()
            await self.send(*messages)

    def _raise_if_serving(self, error: LocalProtocolError) -> None:
        """After its Close, what was on the way to the client is of no use to anybody."""
        if self._life.state is State.SERVING:
            raise error
