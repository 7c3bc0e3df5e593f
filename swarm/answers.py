"""Answers to several prompts, a few of them under way at once: one that fails takes no other with it."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Final

import trio

from protocol import limits
from protocol.errors import ConfigError, NoRoute, SwarmError, unwrapped
from swarm.answer import Answer
from swarm.generation import Generation
from swarm.routing.route import Route

Prompt = str | Sequence[int]
Prompts = list[str] | list[list[int]] | list[Prompt]

# More are better asked in parts: each holds its prompt here, and nodes take only so many at once anyway.
PROMPTS: Final = 1 << 20
# Of those that may be under way at once, so many times may have ended before the one that is to be given out next.
LEAD: Final = 8
# Sessions are told that they are over within half a second; who is slower than this is left to itself.
_CLOSE_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class Several:
    """How several prompts are answered.

    at_once  the most that are under way; fewer where each has many branches, so that a hop has seats for all
    ordered  answers are given out in the order of their prompts; else as they come
    routes   over how many routes that have no peer in common, as far as there are so many

    Raises: ConfigError, where a value is out of range.
    """

    at_once: int = 8
    ordered: bool = True
    routes: int = 1

    def __post_init__(self) -> None:
        for name, value in (("at_once", self.at_once), ("routes", self.routes)):
            if not 1 <= value <= limits.SESSIONS_PER_PEER:
                raise ConfigError(f"{name} {value}: it is from 1 to {limits.SESSIONS_PER_PEER}")


@dataclass(frozen=True, slots=True)
class Answered:
    """What became of one of several prompts: its answer, or as far as that came before the error."""

    number: int  # its place among them, from 0
    prompt: Prompt
    answer: Answer
    error: SwarmError | None = None


# Begins the answer to the prompt of that number, along a route if one is given.
Begin = Callable[[int, Route | None], Generation]


class Answers:
    """The answers to several prompts: iterate it once for what became of each.

    Nothing is asked of the swarm before the first is awaited, and little more is begun than is taken. Whoever leaves
    before the end calls `aclose`, or enters `contextlib.aclosing`; nothing is left at any node then.

    A prompt that finds no room while others of these are under way is begun anew when one of them has ended, and one
    fewer is under way from then on. `plan` gives routes to choose from, none to leave that to each session; `nursery`
    is where answers are computed.
    """

    def __init__(
        self,
        prompts: Sequence[Prompt],
        how: Several,
        begin: Begin,
        plan: Callable[[], Awaitable[Sequence[Route]]],
        nursery: trio.Nursery,
    ) -> None:
        if len(prompts) > PROMPTS:
            raise ConfigError(f"{len(prompts)} prompts: at most {PROMPTS} are taken at once")
        self._prompts = prompts
        self._how = how
        self._begin = begin
        self._plan = plan
        self._nursery = nursery
        self._most = how.at_once
        self._left = deque(range(len(prompts)))  # to be begun, in this order
        self._routes: dict[int, Route | None] = {}  # of those that are under way
        self._choice: Sequence[Route] = ()
        self._ended: dict[int, Answered] = {}  # not yet given out
        self._given = 0
        self._failure: Exception | None = None
        self._changed = trio.Event()
        self._scope = trio.CancelScope()
        self._over = trio.Event()
        self._stream = self._giving_out()

    def __aiter__(self) -> Answers:
        return self

    def __len__(self) -> int:
        """How many prompts there are."""
        return len(self._prompts)

    async def __anext__(self) -> Answered:
        """The next. What befalls one prompt is told in it; raises only what functions of the request raise."""
        return await self._stream.__anext__()

    async def aclose(self) -> None:
        """Stop all that are under way. Safe when they are over."""
        await self._stream.aclose()

    # -- giving out

    async def _giving_out(self) -> AsyncGenerator[Answered, None]:
        self._nursery.start_soon(self._run)
        try:
            while self._given < len(self._prompts):
                while (answered := self._next_ended()) is None:
                    if self._failure is not None:
                        raise self._failure
                    await self._changed.wait()
                self._given += 1
                self._wake()
                yield answered
        finally:
            self._scope.cancel()
            with trio.move_on_after(_CLOSE_S, shield=True):
                await self._over.wait()

    def _next_ended(self) -> Answered | None:
        if self._how.ordered:
            return self._ended.pop(self._given, None)
        return self._ended.pop(next(iter(self._ended))) if self._ended else None

    def _wake(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    # -- answering

    async def _run(self) -> None:
        """Keep as many under way as may be, until all have ended."""
        try:
            with self._scope:
                self._choice = await self._plan()
                async with trio.open_nursery() as nursery:
                    while self._left or self._routes:
                        while self._may_begin():
                            number = self._left.popleft()
                            route = self._routes[number] = least_used(self._choice, self._routes.values())
                            nursery.start_soon(self._answer, number, route)
                        await self._changed.wait()
        except (Exception, BaseExceptionGroup) as error:  # raised to whoever takes the answers
            bare = unwrapped(error)
            if not isinstance(bare, Exception):
                raise
            self._failure = bare
        finally:
            self._over.set()
            self._wake()

    def _may_begin(self) -> bool:
        if not self._left or len(self._routes) >= self._most:
            return False
        ahead = self._left[0] - self._given if self._how.ordered else len(self._ended) + len(self._routes)
        return ahead < LEAD * self._how.at_once

    async def _answer(self, number: int, route: Route | None) -> None:
        generation, error = self._begin(number, route), None
        try:
            async with aclosing(generation):
                async for _ in generation:
                    pass
        except SwarmError as raised:
            error = raised
        del self._routes[number]
        if isinstance(error, NoRoute) and self._routes:
            # What others of ours hold is given back when they end.
            self._most = len(self._routes)
            self._left.appendleft(number)
        else:
            self._ended[number] = Answered(number, self._prompts[number], generation.answer, error)
        self._wake()


def least_used(choice: Sequence[Route], used: Collection[Route | None]) -> Route | None:
    """The route that would be the quickest if its time rose with those who use it; None, without a choice."""
    loads = Counter(id(route) for route in used)
    return min(choice, key=lambda route: (loads[id(route)] + 1) * route.expected_ms, default=None)
