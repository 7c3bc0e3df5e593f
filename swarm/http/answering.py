"""Answers to asks over one client: their turn, a session, and what comes of it. In the trio loop.

The only place that knows how an answer is asked of the client: what a dialect says becomes arguments of
`Client.generate` here, and what comes of it becomes `Said`.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Final, Protocol

import trio

from protocol.errors import ConfigError, NoRoute, unwrapped
from protocol.model import Span
from swarm.answer import Answer
from swarm.client import Client
from swarm.decoding import Token
from swarm.decoding.runs import common_prefix
from swarm.events import Event
from swarm.generation import Generation
from swarm.guided import check_grammar
from swarm.http import limits
from swarm.http.asking import Ask, Conversation, Ids
from swarm.http.calls import READERS, Call, Found
from swarm.http.errors import bad_request, full
from swarm.http.line import Line
from swarm.http.maps import no_route
from swarm.http.place import Place
from swarm.http.pool import Pool
from swarm.http.tools import Tools, calls_grammar, new_call_id, tool_format
from swarm.request import Request
from swarm.routing.route import Route
from swarm.session.session import PREFILL_CHUNK, Session

_log: Final = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Begun:
    """The session of `count` answers from `index` on is open; `held` tokens of the prompt were in it already."""

    index: int
    count: int
    prompt_tokens: int
    held: int
    route: Route


@dataclass(frozen=True, slots=True)
class Named:
    """A token as text; `best` are the likeliest at its place."""

    text: str
    logprob: float
    best: tuple[tuple[str, float], ...]


@dataclass(frozen=True, slots=True)
class Text:
    """The next text of an answer, of `count` tokens, and these if they were asked for."""

    index: int
    text: str
    tokens: tuple[Named, ...] = ()
    count: int = 0


@dataclass(frozen=True, slots=True)
class Called:
    """An answer calls a tool; `number` counts its calls, and `id` is told again with what comes of it."""

    index: int
    number: int
    id: str
    call: Call


@dataclass(frozen=True, slots=True)
class Happened:
    """Something befell the session of an answer, which goes along `route` since."""

    index: int
    event: Event
    route: Route


@dataclass(frozen=True, slots=True)
class HopTime:
    """What a hop took for a step after the prompt, on average; None, where it computed none of this answer."""

    peer: str
    span: Span
    ms: float | None


@dataclass(frozen=True, slots=True)
class Ended:
    """An answer is whole; `held` tokens of its prompt were there already, and `steps` came after it.

    `text` is what it says beside its calls.
    """

    index: int
    answer: Answer
    held: int
    hops: tuple[HopTime, ...]
    text: str
    steps: int = 0
    calls: tuple[Called, ...] = ()


@dataclass(frozen=True, slots=True)
class Over:
    """All answers are whole."""


Said = Begun | Text | Called | Happened | Ended | Over
Send = Callable[[Said], Awaitable[None]]


class Tally(Protocol):
    """Is told of each answer, to count it."""

    def answered(self, said: Ended) -> None:
        """One is whole."""

    def left(self) -> None:
        """One was given up by whoever asked."""


@dataclass(frozen=True, slots=True)
class _Job:
    """An ask with all that it needs."""

    client: Client
    ask: Ask
    prompt: Sequence[int]
    max_new_tokens: int
    first: int  # index of the first of its answers
    request: Request
    format: str = ""  # in which calls of tools are written, if there may be some


class Answering:
    """Takes asks. The place, the line and the pool are the caller's."""

    def __init__(self, place: Place, line: Line, pool: Pool, tally: Tally) -> None:
        self._place = place
        self._line = line
        self._pool = pool
        self._tally = tally

    async def answer(self, asks: Sequence[Ask], asker: str, send: Send) -> None:
        """Send all that comes of them: `Begun` before anything else of an ask, an `Ended` of each answer, `Over`.

        Cancelled, it ends its sessions: nodes stop where they are. Raises: ApiError; what a session raises.
        """
        if sum(ask.count for ask in asks) > self._line.share:
            raise bad_request(f"at most {self._line.share} answers to one request are computed here")
        async with trio.open_nursery() as nursery:
            first = 0
            for ask in asks:
                nursery.start_soon(self._answer, ask, asker, first, send)
                first += ask.count
        await send(Over())

    async def _answer(self, ask: Ask, asker: str, first: int, send: Send) -> None:
        async with self._line.place(ask.count, asker):
            client = self._place.client
            job = await self._job(client, ask, first)
            try:
                await self._over_session(job, send)
            except (NoRoute, ExceptionGroup) as raised:
                error = unwrapped(raised)
                if not isinstance(error, NoRoute):
                    raise
                if await self._is_served(client):
                    raise full(str(error), self._line.retry_after_s) from error
                raise no_route(error, client) from error
            except trio.Cancelled:
                self._tally.left()
                raise

    async def _job(self, client: Client, ask: Ask, first: int) -> _Job:
        prompt = await encode(client, ask.prompt)
        request, how = ask.request, ""
        if isinstance(ask.prompt, Conversation) and ask.prompt.tools is not None and ask.prompt.tools.tools:
            request, how = await _with_tools(client, request, ask.prompt.tools)
        context = client.model.context
        if not prompt:
            raise bad_request("the prompt is empty: there is nothing to continue")
        if len(prompt) + (ask.max_new_tokens or 1) > context:
            wanted = f" and the answer may have {ask.max_new_tokens}" if ask.max_new_tokens else ""
            raise bad_request(
                f"the prompt has {len(prompt)} tokens{wanted}; the model takes {context} in all",
                code="context_length_exceeded",
            )
        if request.grammar is not None:
            field = ask.grammar_field if request.grammar is ask.request.grammar else "tools"
            try:
                await check_grammar(client.text, request.grammar, client.vocab_size)
            except ConfigError as error:
                raise bad_request(f"{field}: {error}", field) from error
        most = ask.max_new_tokens or min(limits.NEW_TOKENS, context - len(prompt))
        return _Job(client, ask, prompt, most, first, request, how)

    async def _over_session(self, job: _Job, send: Send) -> None:
        # With room for the next turns of a conversation: what is not used is not reserved.
        room = max(len(job.prompt) + job.max_new_tokens, job.client.usual_tokens)
        session = self._pool.take(job.prompt, room, job.client.new_session)
        whole = False
        try:
            held = common_prefix(session.tokens, job.prompt)
            await session.open()
            await send(Begun(job.first, job.ask.count, len(job.prompt), held, session.route))
            await self._answers(job, session, held, send)
            whole = True
        finally:
            if whole:
                await self._pool.leave(session)
            else:
                with trio.CancelScope(shield=True):  # bounded by the session itself
                    await session.aclose()

    async def _answers(self, job: _Job, session: Session, held: int, send: Send) -> None:
        """All answers: the others begin with what the first has computed of the prompt."""
        first = _Answer(job, session, 0, held, send)
        async with aclosing(first.generation):
            await first.step()
            forks: list[Session] = []
            try:
                for _ in range(1, job.ask.count):
                    forks.append(await session.fork(len(job.prompt) - 1))
                others = [
                    _Answer(job, fork, index, len(job.prompt) - 1, send)
                    for index, fork in enumerate(forks, 1)
                ]
                async with trio.open_nursery() as nursery:
                    for answer in (first, *others):
                        nursery.start_soon(self._finish, answer)
            finally:
                with trio.CancelScope(shield=True):
                    for fork in forks:
                        await fork.aclose()

    async def _finish(self, answer: _Answer) -> None:
        async with aclosing(answer.generation):
            while await answer.step():
                pass
        ended = await answer.end()
        self._tally.answered(ended)
        said = ended.answer
        _log.info(
            "answered %d tokens with %d: %s, the first after %.3f s, then %.1f a second, %d reroutes",
            said.prompt_tokens,
            len(said.tokens),
            said.finish_reason,
            said.ttft_s,
            said.tokens_per_s,
            len(said.reroutes),
        )

    async def _is_served(self, client: Client) -> bool:
        """Whether it is but room that is missing: also where those who have none are left alone for a while."""
        try:
            await client.plan_route(1)
        except NoRoute as error:
            return client.pause_s(error) is not None
        return True


class _Answer:
    """One of the answers to an ask, over a session of its own."""

    def __init__(self, job: _Job, session: Session, index: int, held: int, send: Send) -> None:
        self.generation = _generate(job, session, index)
        self._job = job
        self._session = session
        self._index = job.first + index
        self._send = send
        self._held = held
        self._told = 0  # events
        self._over = False
        self._calls: list[Called] = []
        self._said: list[str] = []
        tools = job.ask.prompt.tools if isinstance(job.ask.prompt, Conversation) else None
        self._reader = READERS[job.format](tools.names) if job.format and tools is not None else None
        # The steps of the prompt are no measure of a token's.
        self._first_step = session.steps + -(-(len(job.prompt) - held) // PREFILL_CHUNK)

    async def step(self) -> bool:
        """Send the next piece and what happened before it; whether there was one."""
        if self._over:
            return False
        try:
            piece = await self.generation.__anext__()
        except StopAsyncIteration:
            self._over = True
        await self._tell_events()
        if not self._over:
            named = await self._named(piece.tokens) if self._job.ask.logprobs else ()
            text = piece.text if self._reader is None else self._reader.push(piece.text)
            await self._tell(text, named, len(piece.tokens))
        return not self._over

    async def _tell(
        self, found: str | Sequence[Found], named: tuple[Named, ...] = (), count: int = 0
    ) -> None:
        """Send text and calls; the tokens that they came with go with the first text, or alone."""
        for each in (found,) if isinstance(found, str) else (found or ("",)):
            if isinstance(each, Call):
                called = Called(self._index, len(self._calls), new_call_id(), each)
                self._calls.append(called)
                await self._send(called)
            elif each or named:
                self._said.append(each)
                await self._send(Text(self._index, each, named, count))
                named, count = (), 0
        if named:
            await self._send(Text(self._index, "", named, count))

    async def end(self) -> Ended:
        """Send and return the whole of it."""
        if self._reader is not None:
            await self._tell(self._reader.flush())
        steps = max(0, self._session.steps - self._first_step)
        answer, said, calls = self.generation.answer, "".join(self._said), tuple(self._calls)
        ended = Ended(self._index, answer, self._held, self._hop_times(), said, steps, calls)
        await self._send(ended)
        return ended

    async def _named(self, tokens: Sequence[Token]) -> tuple[Named, ...]:
        """Those that are text: what ends an answer is not told."""
        text, shown = self._job.client.text, []
        for token in tokens:
            if token.id not in text.eos:
                best = [(await text.decode([id]), logprob) for id, logprob in token.best]
                shown.append(Named(await text.decode([token.id]), token.logprob, tuple(best)))
        return tuple(shown)

    async def _tell_events(self) -> None:
        events = self.generation.events
        for event in events[self._told :]:
            await self._send(Happened(self._index, event, self._session.route))
        self._told = len(events)

    def _hop_times(self) -> tuple[HopTime, ...]:
        times = []
        for hop in self._session.hops:
            took = [cost.compute_ms for cost in hop.costs if cost.number >= self._first_step]
            mean = sum(took) / len(took) if took else None
            times.append(HopTime(hop.peer, hop.planned.span, mean))
        return tuple(times)


def _generate(job: _Job, session: Session, index: int) -> Generation:
    """How a client is asked for it."""
    request = replace(job.request, max_new_tokens=job.max_new_tokens)
    if request.settings.seed is not None and index:
        request = replace(request, sampling=replace(request.settings, seed=request.settings.seed + index))
    return job.client.generate(job.prompt, request=request, session=session)


async def _with_tools(client: Client, request: Request, tools: Tools) -> tuple[Request, str]:
    """What is asked where tools may be called, and how calls are written. Raises: ApiError, 400."""
    how = await tool_format(client.text)
    request = replace(request, marks={token: mark for mark, token in how.marks.items()})
    if request.grammar is None:
        try:
            request = replace(request, grammar=calls_grammar(tools, how))
        except ConfigError as error:
            raise bad_request(f"tools: {error}", "tools") from error
    return request, how.format


async def encode(client: Client, prompt: str | Ids | Conversation) -> list[int]:
    """The ids of a prompt. Raises: ApiError, 400; Malformed or TooLarge, a node's fault."""
    match prompt:
        case Conversation(messages=messages, tools=Tools(tools=tools)):
            await tool_format(client.text)
            return await client.text.encode_chat(messages, [tool.as_function() for tool in tools])
        case Conversation(messages=messages):
            return await client.text.encode_chat(messages)
        case Ids(tokens=tokens):
            size = client.model.manifest.vocab_size
            if tokens and not 0 <= min(tokens) <= max(tokens) < size:
                raise bad_request(
                    f"the prompt has a token outside the model's vocabulary of {size}", "prompt"
                )
            return list(tokens)
        case text:
            return await client.text.encode(text)
