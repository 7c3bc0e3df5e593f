"""One answer in the making: drives a decoding strategy over a session and turns tokens into text."""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass, replace
from itertools import islice
from typing import Final

import trio

from protocol.errors import ConfigError
from swarm.answer import Alternative, Answer, HopCost, Piece, Settled
from swarm.branches import Branches, Source
from swarm.decoding import AMATEUR, DRAFT, Continuation, Decoding, Ending, OutOfTime, Task, Token
from swarm.decoding.asks import Said, Told
from swarm.decoding.runs import common_prefix
from swarm.events import Altered, Event, Rerouted
from swarm.guided import Guided, Held, Masked
from swarm.request import Request
from swarm.routing.route import Route
from swarm.session.session import Session
from swarm.text.stream import StopStrings
from swarm.text.text import Text


@dataclass(frozen=True, slots=True)
class Start:
    """What an answer begins with: the ids of its prompt, and the session that is to hold them, opened by a route."""

    session: Session
    prompt: Sequence[int]
    route: Route | None = None


NO_ROUTE: Final = Route((), 0, 0.0)


class Generation:
    """One answer: iterate it once for its pieces. `answer` and `events` are its own, and can be read at any time.

    Nothing is asked of the swarm before the first piece is awaited, and what it took is counted from then on. Whoever
    leaves before the end calls `aclose`, or enters `contextlib.aclosing`.

    `prepared` opens what the answer begins with and closes it again; `on_end` is told how it ended, however that was.
    """

    def __init__(
        self,
        text: Text,
        request: Request,
        prepared: Callable[[], AbstractAsyncContextManager[Start]],
        on_end: Callable[[Answer], None] | None = None,
    ) -> None:
        self._text = text
        self._request = request
        self._prepared = prepared
        self._on_end = on_end
        self._stream = self._answering()
        self._session: Session | None = None  # while it is used
        self._branches: Branches | None = None  # likewise
        self._events_before = 0
        self._events: tuple[Event, ...] = ()
        self._route = NO_ROUTE
        self._prompt: Sequence[int] = ()
        self._began = self._first = self._ended = 0.0
        self._tokens: list[Token] = []
        self._pieces: list[str] = []
        self._finish = "cancelled"
        self._by_token = False  # whether a piece is given for each token, though its text be empty
        self._costs_told: dict[bytes, int] = {}  # acks of each hop that `moments` has told of
        self._score: float | None = None
        self._alternatives: tuple[Alternative, ...] = ()

    def __aiter__(self) -> Generation:
        return self

    async def __anext__(self) -> Piece:
        """The next text. Raises what a session raises where it is opened and steps; ConfigError, for a bad prompt."""
        return await self._stream.__anext__()

    async def aclose(self) -> None:
        """Stop the answer where it is. Safe when it is over."""
        await self._stream.aclose()

    async def moments(self) -> AsyncGenerator[Settled | str | Event, None]:
        """In place of its pieces: each token as it is settled, the text that is certain then, and what happens.

        An event is told before the token that came after it; as it happens, by the client's `on_event` alone.
        """
        self._by_token = True
        known: list[Event] = []
        async with aclosing(self):
            async for piece in self:
                for event in self._unknown(known):
                    yield event
                for token in piece.tokens:
                    yield Settled(token, self._ended - self._began, self._hops_told())
                if piece.text:
                    yield piece.text
        for event in self._unknown(known):
            yield event

    @property
    def prompt(self) -> Sequence[int]:
        """The ids that the answer continues; none, before they are known."""
        return self._prompt

    @property
    def answer(self) -> Answer:
        """What there is so far."""
        return Answer(
            text="".join(self._pieces),
            chosen=tuple(self._tokens),
            prompt_tokens=len(self._prompt),
            finish_reason=self._finish,
            seconds=self._ended - self._began,
            ttft_s=self._first - self._began,
            route=self._session.route if self._session is not None else self._route,
            reroutes=tuple(event for event in self.events if isinstance(event, Rerouted)),
            altered=tuple(event for event in self.events if isinstance(event, Altered)),
            score=self._score,
            alternatives=self._alternatives,
        )

    @property
    def events(self) -> tuple[Event, ...]:
        """What happened to its session meanwhile; of a wait only how it began."""
        if self._session is None:
            return self._events
        beside = self._branches.events if self._branches is not None else ()
        return (*self._session.events[self._events_before :], *beside)

    def _unknown(self, known: list[Event]) -> list[Event]:
        """What happened that is not in `known`; it is from then on. Those of branches come between the others."""
        new = [event for event in self.events if not any(event is each for each in known)]
        known += new
        return new

    def _hops_told(self) -> tuple[HopCost, ...]:
        """What hops told since this was asked last, hop by hop."""
        told = []
        for hop in self._session.hops if self._session is not None else ():
            count, self._costs_told[hop.session] = self._costs_told.get(hop.session, 0), hop.acks
            new = min(hop.acks - count, len(hop.costs))
            told += [
                HopCost(hop.peer, cost.queue_ms, cost.compute_ms)
                for cost in islice(hop.costs, len(hop.costs) - new, None)
            ]
        return tuple(told)

    async def _answering(self) -> AsyncGenerator[Piece, None]:
        """The whole of it, from the prompt's ids to what is left when it ends."""
        self._began = self._first = self._ended = trio.current_time()
        try:
            async with self._prepared() as start:
                self._take_up(start)
                try:
                    with trio.move_on_at(self._deadline) as opening:
                        await start.session.open(start.route)
                    if opening.cancelled_caught:
                        self._finish = "time"
                        return
                    async with (
                        self._beside(start) as beside,
                        aclosing(self._new_pieces(start.session, beside)) as pieces,
                    ):
                        async for piece in pieces:
                            self._pieces.append(piece.text)
                            yield piece
                finally:
                    self._let_go(start.session)
        finally:
            if self._on_end is not None:
                self._on_end(self.answer)

    @property
    def _deadline(self) -> float:
        return self._began + (self._request.max_seconds or math.inf)

    @property
    def _eos(self) -> frozenset[int]:
        return self._text.eos if self._request.eos is None else frozenset(self._request.eos)

    def _take_up(self, start: Start) -> None:
        self._session, self._prompt = start.session, start.prompt
        self._events_before = len(start.session.events)

    def _let_go(self, session: Session) -> None:
        """Keep what the session knows of this answer: others may use it next."""
        self._events, self._route = self.events, session.route
        self._session = self._branches = None

    @asynccontextmanager
    async def _beside(self, start: Start) -> AsyncIterator[dict[int, Source]]:
        """The branches of other models."""
        others = {AMATEUR: self._request.amateur, DRAFT: self._request.draft}
        most = min(len(start.prompt) + self._request.max_new_tokens, start.session.spec.max_tokens)
        async with AsyncExitStack() as stack:
            yield {
                branch: await stack.enter_async_context(model.session(max_tokens=most))
                for branch, model in others.items()
                if model is not None
            }

    async def _new_pieces(self, session: Session, beside: dict[int, Source]) -> AsyncGenerator[Piece, None]:
        """The text as it comes."""
        stream, stops = self._text.stream(self._request.marks), StopStrings(self._request.stop)
        shown, told, enough = "", 0, False
        async with aclosing(self._new_tokens(session, beside)) as tokens:
            async for token in tokens:
                new = "" if token.id in self._eos else stops.push(await stream.push(token.id))
                shown += new
                if self._request.until is not None:
                    enough = self._request.until(shown, [each.id for each in self._tokens])
                if stops.stopped:
                    self._finish = "stop"
                elif enough:
                    self._finish = "until"
                if new or stops.stopped or self._by_token:
                    yield Piece(new, tuple(self._tokens[told:]))
                    told = len(self._tokens)
                if stops.stopped:
                    return
                if enough:
                    break
        rest = stops.push(await stream.flush()) + stops.flush()
        if stops.stopped:
            self._finish = "stop"
        if rest or told < len(self._tokens):
            yield Piece(rest, tuple(self._tokens[told:]))

    async def _new_tokens(self, session: Session, beside: dict[int, Source]) -> AsyncGenerator[Token, None]:
        """Tokens, as the strategy gives them."""
        request, settings = self._request, self._request.settings
        held = Held(
            self._prompt, common_prefix(session.tokens, self._prompt), session.spec.vocab_size, self._eos
        )
        async with aclosing(Branches(session, beside)) as self._branches:
            source: Branches | Guided = self._branches
            if request.grammar is not None:
                guide = Masked(self._text, request.grammar, held)
                source, settings = Guided(self._branches, guide, held), replace(settings, allowed=guide)
            task = Task(
                self._prompt,
                held.vocab_size,
                min(request.max_new_tokens, session.spec.max_tokens - len(self._prompt)),
                settings,
                self._eos,
                held.cached,
                request.top_logprobs,
                None if request.amateur is None else request.amateur.vocab_size,
                None if request.draft is None else request.draft.vocab_size,
                lambda: session.goes_back,
                hidden_size=session.spec.hidden_size,
            )
            strategy = request.chosen_strategy().decode(task)
            said = _go_on(strategy, None)
            while not isinstance(said, Ending):
                if isinstance(said, Token):
                    self._ended = trio.current_time()
                    if not self._tokens:
                        self._first = self._ended
                    self._tokens.append(said)
                    yield said
                    said = _go_on(strategy, None)
                    continue
                with trio.move_on_at(self._deadline) as asking:
                    told = await source.answer(said)
                said = _stop_short(strategy) if asking.cancelled_caught else _go_on(strategy, told)
            self._finish, self._score = said.reason, said.score
            self._alternatives = tuple([await self._written(each) for each in said.others])
            strategy.close()

    async def _written(self, found: Continuation) -> Alternative:
        """It with its text, which ends as the answer's would."""
        ids = [token.id for token in found.tokens]
        shown = ids[:-1] if ids[-1] in self._eos else ids
        stops = StopStrings(self._request.stop)
        text = stops.push(await self._text.decode(shown))
        text, reason = (text, "stop") if stops.stopped else (text + stops.flush(), found.reason)
        return Alternative(text, found.tokens, reason, found.score)


def _go_on(strategy: Decoding, told: Told) -> Said | Ending:
    """What a strategy says next."""
    try:
        return strategy.send(told)
    except StopIteration as end:
        ending: Ending = end.value
        return ending


def _stop_short(strategy: Decoding) -> Said | Ending:
    """What it says when it is told that there is no time left."""
    try:
        return strategy.throw(OutOfTime())
    except StopIteration as end:
        ending: Ending = end.value
        return ending
    except OutOfTime:
        return Ending("time")


def check_length(prompt: Sequence[int], most: int) -> None:
    """Raises: ConfigError, if a sequence of at most `most` tokens cannot hold this prompt and an answer."""
    if not prompt:
        raise ConfigError("the prompt is empty: there is nothing to continue")
    if len(prompt) >= most:
        raise ConfigError(
            f"the prompt has {len(prompt)} tokens; with room for an answer at most {most - 1} fit"
        )
