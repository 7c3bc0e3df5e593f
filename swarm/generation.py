"""One answer in the making: drives a decoding strategy over a session and turns tokens into text."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, aclosing
from dataclasses import dataclass, field
from typing import Final

import trio

from protocol.errors import ConfigError
from swarm.decoding import Ask, Sampling, decode
from swarm.events import Altered, Event, Rerouted
from swarm.routing.route import Route
from swarm.session.session import Session
from swarm.text.stream import StopStrings
from swarm.text.text import Text


@dataclass(frozen=True, slots=True)
class Request:
    """How to answer: at most `max_new_tokens`, chosen by `sampling`, ended before any of the `stop` strings."""

    max_new_tokens: int = 64
    sampling: Sampling = field(default_factory=Sampling)
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ConfigError(f"max_new_tokens {self.max_new_tokens}: it is at least 1")


@dataclass(frozen=True, slots=True)
class Piece:
    """The next text of an answer; `token` is the one that completed it."""

    text: str
    token: int


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer as far as it came and what it took. Times in seconds."""

    text: str
    tokens: tuple[int, ...]  # the one that ended it included
    prompt_tokens: int
    finish_reason: str  # "eos", "length", "stop" or "cancelled"
    seconds: float
    ttft_s: float  # from the request to the first token
    route: Route  # the latest; without hops, if there was none yet
    reroutes: tuple[Rerouted, ...]
    altered: tuple[Altered, ...] = ()  # what was computed otherwise from some token on

    @property
    def tokens_per_s(self) -> float:
        """Decoding speed: tokens after the first over the time after the first."""
        decoding_s = self.seconds - self.ttft_s
        return (len(self.tokens) - 1) / decoding_s if len(self.tokens) > 1 and decoding_s > 0 else 0.0

    @property
    def peers(self) -> tuple[str, ...]:
        """Everybody who worked on it, lost ones included."""
        lost = [reroute.lost for reroute in self.reroutes]
        return tuple(dict.fromkeys([*lost, *self.route.peers]))


@dataclass(frozen=True, slots=True)
class Start:
    """What an answer begins with: the ids of its prompt, and the session that is to hold them."""

    session: Session
    prompt: Sequence[int]


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
        self._events_before = 0
        self._events: tuple[Event, ...] = ()
        self._route = NO_ROUTE
        self._prompt: Sequence[int] = ()
        self._began = self._first = self._ended = 0.0
        self._tokens: list[int] = []
        self._pieces: list[str] = []
        self._finish = "cancelled"

    def __aiter__(self) -> Generation:
        return self

    async def __anext__(self) -> Piece:
        """The next text. Raises what a session raises where it is opened and steps; ConfigError, for a bad prompt."""
        return await self._stream.__anext__()

    async def aclose(self) -> None:
        """Stop the answer where it is. Safe when it is over."""
        await self._stream.aclose()

    @property
    def answer(self) -> Answer:
        """What there is so far."""
        return Answer(
            text="".join(self._pieces),
            tokens=tuple(self._tokens),
            prompt_tokens=len(self._prompt),
            finish_reason=self._finish,
            seconds=self._ended - self._began,
            ttft_s=self._first - self._began,
            route=self._session.route if self._session is not None else self._route,
            reroutes=tuple(event for event in self.events if isinstance(event, Rerouted)),
            altered=tuple(event for event in self.events if isinstance(event, Altered)),
        )

    @property
    def events(self) -> tuple[Event, ...]:
        """What happened to its session meanwhile; of a wait only how it began."""
        return self._events if self._session is None else tuple(self._session.events[self._events_before :])

    async def _answering(self) -> AsyncGenerator[Piece, None]:
        """The whole of it, from the prompt's ids to what is left when it ends."""
        self._began = self._first = self._ended = trio.current_time()
        try:
            async with self._prepared() as start:
                self._take_up(start)
                try:
                    await start.session.open()
                    async with aclosing(self._new_pieces(start.session)) as pieces:
                        async for piece in pieces:
                            self._pieces.append(piece.text)
                            yield piece
                finally:
                    self._let_go(start.session)
        finally:
            if self._on_end is not None:
                self._on_end(self.answer)

    def _take_up(self, start: Start) -> None:
        self._session, self._prompt = start.session, start.prompt
        self._events_before = len(start.session.events)

    def _let_go(self, session: Session) -> None:
        """Keep what the session knows of this answer: others may use it next."""
        self._events, self._route = self.events, session.route
        self._session = None

    async def _new_pieces(self, session: Session) -> AsyncGenerator[Piece, None]:
        """The text as it comes."""
        stream, stops = self._text.stream(), StopStrings(self._request.stop)
        last = 0
        async with aclosing(self._new_tokens(session)) as tokens:
            async for token in tokens:
                last = token
                shown = "" if token in self._text.eos else stops.push(await stream.push(token))
                if stops.stopped:
                    self._finish = "stop"
                if shown or stops.stopped:
                    yield Piece(shown, token)
                if stops.stopped:
                    return
        rest = stops.push(await stream.flush()) + stops.flush()
        if stops.stopped:
            self._finish = "stop"
        if rest:
            yield Piece(rest, last)

    async def _new_tokens(self, session: Session) -> AsyncGenerator[int, None]:
        """Tokens, as the strategy emits them."""
        request = self._request
        strategy = decode(
            self._prompt,
            cached=_common_prefix(session.tokens, self._prompt),
            sampling=request.sampling,
            eos=self._text.eos,
            max_new_tokens=min(request.max_new_tokens, session.spec.max_tokens - len(self._prompt)),
            vocab_size=session.spec.vocab_size,
        )
        reply = None
        while True:
            try:
                event = strategy.send(reply)
            except StopIteration as end:
                self._finish = end.value
                return
            if isinstance(event, Ask):
                reply = await session.step(event.tokens, position=event.position, want=event.want)
                continue
            reply = None
            self._ended = trio.current_time()
            if not self._tokens:
                self._first = self._ended
            self._tokens.append(event.token)
            yield event.token


def check_length(prompt: Sequence[int], most: int) -> None:
    """Raises: ConfigError, if a sequence of at most `most` tokens cannot hold this prompt and an answer."""
    if not prompt:
        raise ConfigError("the prompt is empty: there is nothing to continue")
    if len(prompt) >= most:
        raise ConfigError(
            f"the prompt has {len(prompt)} tokens; with room for an answer at most {most - 1} fit"
        )


def _common_prefix(held: Sequence[int], wanted: Sequence[int]) -> int:
    """How many of the first tokens are the same."""
    for index, (a, b) in enumerate(zip(held, wanted, strict=False)):
        if a != b:
            return index
    return min(len(held), len(wanted))
