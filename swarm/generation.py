"""From a prompt to text: drives a decoding strategy over a session and turns tokens into text."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field

import trio

from protocol.errors import ConfigError
from swarm.decoding import Ask, Sampling, decode
from swarm.events import Rerouted
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
    """A finished (or stopped) answer and what it took. Times in seconds."""

    text: str
    tokens: tuple[int, ...]  # the one that ended it included
    prompt_tokens: int
    finish_reason: str  # "eos", "length", "stop" or "cancelled"
    seconds: float
    ttft_s: float  # from the request to the first token
    route: Route
    reroutes: tuple[Rerouted, ...]

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


class Generation:
    """One answer in the making. Iterate it once; `answer` tells at any time how it stands.

    `began`: when it was asked for, by trio's clock; what it took is counted from then on.
    """

    def __init__(
        self, session: Session, text: Text, prompt: Sequence[int], request: Request, began: float
    ) -> None:
        self._session = session
        self._text = text
        self._prompt = list(prompt)
        self._request = request
        self._began = self._first = self._ended = began
        self._tokens: list[int] = []
        self._pieces: list[str] = []
        self._finish = "cancelled"
        self._reroutes_before = len(session.reroutes)

    def answer(self) -> Answer:
        """What there is so far."""
        return Answer(
            text="".join(self._pieces),
            tokens=tuple(self._tokens),
            prompt_tokens=len(self._prompt),
            finish_reason=self._finish,
            seconds=self._ended - self._began,
            ttft_s=self._first - self._began,
            route=self._session.route,
            reroutes=tuple(self._session.reroutes[self._reroutes_before :]),
        )

    async def pieces(self) -> AsyncGenerator[Piece, None]:
        """The text as it comes. Raises what `Session.step` raises."""
        stream, stops = self._text.stream(), StopStrings(self._request.stop)
        last = 0
        async for token in self._run():
            last = token
            shown = "" if token in self._text.eos else stops.push(await stream.push(token))
            if shown or stops.stopped:
                self._pieces.append(shown)
                yield Piece(shown, token)
            if stops.stopped:
                self._finish = "stop"
                return
        rest = stops.push(await stream.flush()) + stops.flush()
        if rest:
            self._pieces.append(rest)
            yield Piece(rest, last)
        if stops.stopped:
            self._finish = "stop"

    async def _run(self) -> AsyncGenerator[int, None]:
        """Tokens, as the strategy emits them."""
        session, request = self._session, self._request
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


def _common_prefix(held: Sequence[int], wanted: Sequence[int]) -> int:
    """How many of the first tokens are the same."""
    for index, (a, b) in enumerate(zip(held, wanted, strict=False)):
        if a != b:
            return index
    return min(len(held), len(wanted))
