"""The branches of a strategy as sequences that somebody computes: sessions in a swarm, or what is like them."""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from functools import partial
from types import MappingProxyType
from typing import Protocol, TypeVar, runtime_checkable

import trio

from protocol.candidates import NOTHING, Candidates, Want
from protocol.errors import LocalProtocolError
from swarm.decoding import Ask, Begin, Landed, Next, Together
from swarm.decoding.runs import common_prefix
from swarm.events import Event
from swarm.session.lanes import LaneStep, NotCarried

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


@runtime_checkable
class Wide(Source, Protocol):
    """A source that holds several branches itself, as lanes: a `Session`."""

    @property
    def tokens(self) -> Sequence[int]:
        """What lane 0 holds."""

    async def step_lanes(self, steps: Sequence[LaneStep], ended: Sequence[int] = ()) -> list[Candidates]:
        """See `Session.step_lanes`."""

    def leave_lanes(self) -> dict[int, Sequence[int]]:
        """See `Session.leave_lanes`."""


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
    """Branch 0 and what is given beside it are the caller's; the others are made of them and closed here.

    What begins as a part of branch 0, or of another that did, is a lane of its source where that holds several: they
    are asked in one step. Where that does not go, or does not go any more, each is a fork of its own.
    """

    def __init__(self, first: Source, beside: Mapping[int, Source] = MappingProxyType({})) -> None:
        self._sources: dict[int, Source] = {0: first, **beside}
        self._given = frozenset(self._sources)
        self._wide = first if isinstance(first, Wide) else None  # as long as it holds branches itself
        self._lanes: set[int] = set()  # those that it holds, beside 0
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
        held = self._lanes | {0} if self._wide is not None else set[int]()
        places = [place for place, ask in enumerate(asks) if ask.branch in held or ask.parent in held]
        lanes = [asks[place] for place in places]
        if self._wide is None or (not self._lanes and all(ask.parent is None for ask in lanes)):
            return await self._apart(asks, dropped)
        ended = [branch for branch in dropped if branch in self._lanes]
        others = [ask for ask in asks if ask not in lanes]
        left = [branch for branch in dropped if branch not in self._lanes]
        jobs: list[Job[list[Candidates]]] = [partial(self._step_lanes, self._wide, lanes, ended)]
        if others or left:
            jobs.append(partial(self._apart, others, left))
        found, *beside = await at_once(jobs)
        rest = iter(beside[0] if beside else ())
        of_lanes = dict(zip(places, found, strict=True))
        return [of_lanes[place] if place in of_lanes else next(rest) for place in range(len(asks))]

    async def _step_lanes(self, wide: Wide, asks: Sequence[Ask], ended: Sequence[int]) -> list[Candidates]:
        steps = [LaneStep(ask.branch, ask.parent, ask.position, ask.tokens, ask.want) for ask in asks]
        try:
            found = await wide.step_lanes(steps, ended)
        except NotCarried:
            await self._part(wide, ended)
            return await self._apart(asks, ())
        self._lanes.difference_update(ended)
        self._lanes.update(ask.branch for ask in asks if ask.branch)
        return found

    async def _part(self, wide: Wide, ended: Sequence[int]) -> None:
        """From now on each branch is a source of its own, which begins with what it has in common with branch 0."""
        self._wide, self._lanes = None, set()
        held = wide.leave_lanes()
        for branch in held.keys() - set(ended):
            tokens = held[branch]
            common = common_prefix(tokens, wide.tokens)
            source = self._sources[branch] = await wide.fork(common)
            if common < len(tokens):
                await source.step(tokens[common:], position=common, want=NOTHING)

    async def _apart(self, asks: Sequence[Ask], dropped: Sequence[int]) -> list[Candidates]:
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
        if self._wide is not None:
            self._wide.leave_lanes()
            self._lanes = set()
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
