"""A chat of several turns over one session, which keeps its caches at the hops."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial

from swarm.answer import Answer
from swarm.generation import Generation, Start, check_length
from swarm.request import Request
from swarm.routing.route import Route
from swarm.session.session import Session
from swarm.text.text import Text

Message = dict[str, str]


class Conversation:
    """Turns of a chat. The history is what was said in full; a stopped answer stays as far as it came.

    Use it with `async with`, and let a turn end before the next begins.
    """

    def __init__(
        self, text: Text, new_session: Callable[[], Session], system: str | None, request: Request
    ) -> None:
        self.messages: list[Message] = []
        self.request = request  # how the next turns are answered
        self._text = text
        self._new_session = new_session
        self._system = system
        self._session: Session | None = None
        self.reset()

    async def __aenter__(self) -> Conversation:
        return self

    async def __aexit__(self, *_: object) -> None:
        session, self._session = self._session, None
        if session is not None:
            await session.aclose()

    @property
    def route(self) -> Route | None:
        """The hops in use, once there are any."""
        return self._session.route if self._session is not None and self._session.hops else None

    def reset(self) -> None:
        """Forget what was said; caches are rolled back with the next turn."""
        self.messages = [{"role": "system", "content": self._system}] if self._system else []

    def say(self, text: str) -> Generation:
        """The answer to the next turn. Where it raises before its first piece, the turn is not in the history."""
        turn = {"role": "user", "content": text}
        prepared, remember = partial(self._prepared, turn), partial(self._remember, turn)
        return Generation(self._text, self.request, prepared, remember)

    @asynccontextmanager
    async def _prepared(self, turn: Message) -> AsyncIterator[Start]:
        ids = await self._text.encode_chat([*self.messages, turn])
        session = self._session = self._session or self._new_session()
        check_length(ids, session.spec.max_tokens)
        yield Start(session, ids)

    def _remember(self, turn: Message, answer: Answer) -> None:
        if answer.text:
            self.messages += [turn, {"role": "assistant", "content": answer.text}]
