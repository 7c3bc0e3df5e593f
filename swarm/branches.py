"""The branches of a strategy as sequences that somebody computes: sessions in a swarm, or what is like them."""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from functools import partial
from types import MappingProxyType
from typing import Protocol, TypeVar, runtime_checkable

import trio

from protocol.candidates import Candidates, Want
from protocol.errors import LocalProtocolError
from swarm.decoding import Ask, Begin, Landed, Next, Together
from swarm.events import Event

T = TypeVar("T")
Job = Callable[[], Awaitable[T]]


class Source(Protocol):
    """A sequence with caches: a `Session`, a model on this machine, or a fake. One step at a time."""

    @property
    def events(self) -> Sequence[Event]:
        """What happened to it."""

    async def step(self, tokens: Sequence[int], *, position: int, want: Want) -> Candidates | None:
        """See `Session.step`."""

    async def fork(self, position: int) -> Source:
        """See `Session.fork`."""

    async def aclose(self) -> None:
        """It is used no more."""

    def leave(self) -> None:
        """The same, while other things are done."""


class UnderWay(Protocol):
    """A step that is under way."""

    @property
    def seconds(self) -> float:
        """How long it was, once it has been awaited."""

    async def found(self) -> Candidates | None:
        """What comes of it; in the order that steps were sent in."""


@runtime_checkable
class Sends(Protocol):
    """A source that may have several steps under way."""

    async def send_step(self, tokens: Sequence[int], *, position: int, want: Want) -> UnderWay:
        """See `Session.send_step`."""

    def forget_steps(self) -> None:
        """See `Session.forget_steps`."""


class Later:
    """A step of a source that has one at a time: it is run when it is awaited."""

    def __init__(self, source: Source, ask: Ask) -> None:
        self.seconds = 0.0
        self._source = source
        self._ask = ask

    async def found(self) -> Candidates | None:
        """What comes of it."""
        began, ask = trio.current_time(), self._ask
        found = await self._source.step(ask.tokens, position=ask.position, want=ask.want)
        self.seconds = trio.current_time() - began
        return found


class Model(Protocol):
    """Another model that is asked beside: a `Client`, or one on this machine."""

    @property
    def tokenizer(self) -> bytes:
        """The digest of its tokenizer: ids mean the same only where this is the same."""

    @property
    def vocab_size(self) -> int:
        """Logits of one row."""

    def session(self, *, max_tokens: int) -> AbstractAsyncContextManager[Source]:
        """A sequence that it computes, as long as this is entered."""


class Branches:
    """Branch 0 and what is given beside it are the caller's; the others are made of them and closed here."""

    def __init__(self, first: Source, beside: Mapping[int, Source] = MappingProxyType({})) -> None:
        self._sources: dict[int, Source] = {0: first, **beside}
        self._given = frozenset(self._sources)
        self._past: list[Event] = []  # of forks that were closed
        self._begun: deque[UnderWay] = deque()  # of branch 0
        self._begun_to = 0  # where the last of them ends

    @property
    def events(self) -> tuple[Event, ...]:
        """What happened to those that were forked."""
        living = [event for branch in [*self._sources] if branch for event in self._sources[branch].events]
        return (*self._past, *living)

    async def answer(
        self, said: Ask | Together | Begin | Next
    ) -> Candidates | list[Candidates] | Landed | None:
        """What comes of it. Raises: what a source raises; the other asks are given up then."""
        match said:
            case Ask():
                [found] = await self._together((said,), ())
                return found
            case Together(asks=asks, dropped=dropped):
                return await self._together(asks, dropped)
            case Begin(ask=ask):
                await self._begin(ask)
                return None
            case Next():
                return await self._next()

    async def _begin(self, ask: Ask) -> None:
        if ask.position < self._begun_to:
            self._begun.clear()
        source = self._sources[ask.branch]
        if isinstance(source, Sends):
            sent = await source.send_step(ask.tokens, position=ask.position, want=ask.want)
        else:
            sent = Later(source, ask)
        self._begun.append(sent)
        self._begun_to = ask.position + len(ask.tokens)

    async def _next(self) -> Landed:
        if not self._begun:
            raise LocalProtocolError("nothing was begun")
        landing = self._begun.popleft()
        found = await landing.found()
        if found is None:
            raise LocalProtocolError("an ask wants candidates")
        return Landed(found, landing.seconds)

    async def _together(self, asks: Sequence[Ask], dropped: Sequence[int]) -> list[Candidates]:
        # Before any parent takes its next step.
        new = [ask for ask in asks if ask.parent is not None]
        await at_once([partial(self._fork, ask) for ask in new])
        for branch in set(dropped) - self._given:
            source = self._sources.pop(branch)
            self._past += source.events
            source.leave()
        return await at_once([partial(self._step, ask) for ask in asks])

    async def _fork(self, ask: Ask) -> None:
        assert ask.parent is not None
        self._sources[ask.branch] = await self._sources[ask.parent].fork(ask.position)

    async def _step(self, ask: Ask) -> Candidates:
        if not ask.branch:
            self._begun.clear()
        found = await self._sources[ask.branch].step(ask.tokens, position=ask.position, want=ask.want)
        if found is None:
            raise LocalProtocolError("an ask wants candidates")
        return found

    async def _close(self, branch: int) -> None:
        source = self._sources.pop(branch)
        self._past += source.events
        await source.aclose()

    async def aclose(self) -> None:
        """Close all that were forked, and forget what is under way. Safe to call twice."""
        first = self._sources.get(0)
        if self._begun and isinstance(first, Sends):
            first.forget_steps()
        self._begun.clear()
        await at_once([partial(self._close, branch) for branch in self._sources.keys() - self._given])


async def at_once(jobs: Sequence[Job[T]]) -> list[T]:
    """What all of them give, in order. Raises: what the first raises that fails, when all others have ended."""
    if len(jobs) == 1:
        return [await jobs[0]()]
    found: dict[int, T] = {}
    failed: list[Exception] = []

    async def run(number: int) -> None:
        try:
            found[number] = await jobs[number]()
        except Exception as error:  # noqa: BLE001 - raised again below
            failed.append(error)
            nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        for number in range(len(jobs)):
            nursery.start_soon(run, number)
    if failed:
        raise failed[0]
    return [found[number] for number in range(len(jobs))]
