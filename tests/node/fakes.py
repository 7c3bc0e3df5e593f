"""A small deterministic engine, executors for tests, and the client's end of a session."""

from __future__ import annotations

import hashlib
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

import numpy as np
import trio
from numpy.typing import NDArray

from node.compute.call import run_alone
from node.compute.interfaces import PAGE_POSITIONS, Call, KvPage, StepResult
from node.compute.loop import Outcome, attempt
from protocol.candidates import NOTHING, Candidates, Want
from protocol.errors import Malformed, SwarmError, UnsupportedModel
from protocol.messages import SESSION_PROTOCOL, Ack, Attach, Message, NextHop, Open, Opened, Output, Step
from protocol.model import Manifest, Span
from protocol.numerics import Numerics
from protocol.session import Side, StreamState
from protocol.talk.channel import Channel
from protocol.tensors import Tensor, check_finite, from_numpy
from protocol.transport.base import Transport

HIDDEN = 8
VOCAB = 32
BLOCKS = 6
STAGES = BLOCKS + 2
MANIFEST = Manifest(BLOCKS, HIDDEN, VOCAB, 1024, hashlib.sha256(b"fake").digest(), ())
M = TypeVar("M", bound=Message)
T = TypeVar("T")

Rows = NDArray[np.float32]


@cache
def _weights(name: str, *shape: int) -> Rows:
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big")
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


class FakeCache:
    """A state per position and block; forks are `made` known like the caches that an engine makes."""

    def __init__(self, span: Span, made: list[FakeCache]) -> None:
        self.span = span
        self.made = made
        made.append(self)
        self.closed = False
        self.states: dict[int, list[Rows]] = {stage: [] for stage in span if 1 <= stage <= BLOCKS}
        self._length = 0

    @property
    def length(self) -> int:
        """Positions held."""
        return self._length

    def cut(self, length: int) -> None:
        """Forget positions from `length` on."""
        self._length = length
        for states in self.states.values():
            del states[length:]

    def grow(self, rows: int) -> None:
        """Rows were added."""
        self._length += rows

    def fork(self, position: int) -> FakeCache:
        """A copy of the first positions."""
        assert not self.closed
        other = FakeCache(self.span, self.made)
        other.states = {stage: states[:position] for stage, states in self.states.items()}
        other.grow(position)
        return other

    def pages(self, start: int, stop: int) -> list[FakePage]:
        """Copies: nobody writes to them."""
        assert not self.closed
        assert not start % PAGE_POSITIONS
        assert start <= stop <= self._length
        starts = range(start, stop, PAGE_POSITIONS)
        return [FakePage({n: s[at : at + PAGE_POSITIONS] for n, s in self.states.items()}) for at in starts]

    def adopt(self, pages: Sequence[KvPage], length: int) -> None:
        """Begin with them."""
        assert not self._length
        for page in pages:
            assert isinstance(page, FakePage)
            assert not page.released
            for stage, states in page.states.items():
                self.states[stage] += states
        self.cut(length)

    def close(self) -> None:
        """Give the memory back."""
        self.closed = True


@dataclass(eq=False)
class FakePage:
    """The states of a page; counts its releases."""

    states: dict[int, list[Rows]]
    released: int = 0
    nbytes: int = 64 * PAGE_POSITIONS

    def release(self) -> None:
        """Nobody holds it."""
        assert not self.released
        self.released += 1


class FakeEngine:
    """Blocks are leaky sums over the positions, exact under any cut into steps; `steps` records every call, `batches`
    how many came together.
    """

    dtype = "f32"
    shares_pages = True
    goes_back = True
    numerics = Numerics("f32")
    hidden_size = HIDDEN
    manifest = MANIFEST
    weight_bytes = 1000

    def __init__(self, span: Span) -> None:
        self.span = span
        self.steps: list[tuple[int, int]] = []  # (position, rows)
        self.batches: list[int] = []
        self.caches: list[FakeCache] = []
        self.poison: int | None = None  # rows at this position make all fail that is computed with them
        self.error: Exception | None = None  # raised by the next step
        self.spoil = False  # the next result is NaN
        self.keeps_state = False  # its caches cannot be cut but to nothing

    def kv_bytes_per_token(self) -> int:
        """As if keys and values took 64 bytes."""
        return 64

    def new_cache(self, span: Span, max_tokens: int | None = None) -> FakeCache:
        """An empty cache."""
        return FakeCache(span, self.caches)

    def run(self, calls: Sequence[Call]) -> list[StepResult | Exception]:
        """See `node.compute.interfaces.Engine`."""
        self.batches.append(len(calls))
        results = [self._attempt(call) for call in calls]
        if any(call.position == self.poison for call in calls):
            raise ZeroDivisionError("deliberate, after all were computed")
        return results

    def _attempt(self, call: Call) -> StepResult | Exception:
        try:
            return self._call(call)
        except SwarmError as error:
            return error

    def _call(self, call: Call) -> StepResult:
        cache, position, inputs, want = call.cache, call.position, call.inputs, call.want
        assert isinstance(cache, FakeCache)
        assert not cache.closed
        assert position <= cache.length
        self.steps.append((position, inputs.rows))
        if self.error is not None:
            raise self.error
        check_finite(inputs)
        if self.keeps_state and 0 < position < cache.length:
            raise UnsupportedModel("a state cannot be wound back")
        cache.cut(position)
        if cache.span.start == 0:
            ids = inputs.numpy()
            if (ids >= VOCAB).any() or (ids < 0).any():
                raise Malformed("a token id out of the vocabulary")
            hidden = _weights("embedding", VOCAB, HIDDEN)[ids]
        else:
            hidden = inputs.numpy()
        for stage, states in cache.states.items():
            hidden = np.stack([_block(stage, states, row) for row in hidden])
        cache.grow(len(hidden))
        if self.spoil:
            hidden = hidden * np.float32("nan")
        if cache.span.stop < STAGES:
            return from_numpy(hidden)
        return None if want.kind == "nothing" else _head(hidden if want.every else hidden[-1:], want)


def _block(stage: int, states: list[Rows], row: Rows) -> Rows:
    state = row + (np.float32(0.5) * states[-1] if states else np.float32(0))
    states.append(state)
    mixed: Rows = np.tanh(state[::-1] + _weights(f"block {stage}", HIDDEN))
    return mixed


def _head(hidden: Rows, want: Want) -> Candidates:
    weights = _weights("head", HIDDEN, VOCAB)
    logits = np.stack([row @ weights for row in hidden])
    top = min(want.top or VOCAB, VOCAB)
    ids = np.argsort(-logits, axis=1, kind="stable")[:, :top].astype(np.int32)
    lse = np.log(np.exp(logits / want.temperature).sum(axis=1)).astype(np.float32)
    asked = logits[:, list(want.ids)].astype(np.float32)
    return Candidates(
        ids,
        np.take_along_axis(logits, ids, 1),
        lse,
        asked,
        hidden.astype(np.float32) if want.states else None,
    )


def run_whole(tokens: list[int], stop: int, want: Want) -> Any:
    """What the stages 0:stop give for `tokens` in one step."""
    span = Span(0, stop)
    engine = FakeEngine(span)
    return run_alone(engine, engine.new_cache(span), 0, token_rows(tokens), want)


def token_rows(tokens: list[int]) -> Tensor:
    """Token ids as a step's inputs."""
    return from_numpy(np.array(tokens, np.int32))


def hidden_rows(tokens: list[int], stop: int) -> Tensor:
    """The hidden states that stages 0:stop give for `tokens`."""
    result = run_whole(tokens, stop, NOTHING)
    assert isinstance(result, Tensor)
    return result


class InlineExecutor:
    """Computes in the event loop, without a thread: for virtual time. A piece takes `seconds`."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds
        self._queue: deque[tuple[Callable[[], Any], Callable[[Any], None]]] = deque()

    def submit(self, work: Callable[[], T], done: Callable[[Outcome[T]], None]) -> None:
        """See `node.compute.loop.Executor`."""
        self._queue.append((work, done))
        if len(self._queue) == 1:
            trio.lowlevel.spawn_system_task(self._run)

    async def _run(self) -> None:
        while self._queue:
            work, done = self._queue[0]
            await trio.sleep(self.seconds)
            done(attempt(work))  # which may submit more: that waits behind this, which is still in the queue
            self._queue.popleft()


class ManualExecutor:
    """Computes when told to."""

    def __init__(self) -> None:
        self.queue: deque[tuple[Callable[[], Any], Callable[[Any], None]]] = deque()
        self.held = True
        self._running = False

    def submit(self, work: Callable[[], T], done: Callable[[Outcome[T]], None]) -> None:
        """See `node.compute.loop.Executor`."""
        self.queue.append((work, done))
        if not (self.held or self._running):
            self.release()

    def run_one(self) -> None:
        """Do the oldest piece of work."""
        work, done = self.queue.popleft()
        done(attempt(work))

    def release(self) -> None:
        """Do everything, and what comes at once."""
        self.held, self._running = False, True
        while self.queue:
            self.run_one()
        self._running = False


class Client:
    """The opener's end of one session stream."""

    def __init__(self, channel: Channel, session: bytes) -> None:
        self.channel = channel
        self.session = session

    @classmethod
    async def to(cls, transport: Transport, hop: Transport) -> Client:
        """A stream to `hop` on which nothing was said."""
        stream = await transport.open_stream(hop.peer, hop.addrs, SESSION_PROTOCOL)
        session = hashlib.sha256(str(time.perf_counter_ns()).encode()).digest()[:16]
        return cls(Channel(stream, state=StreamState(Side.OPENER)), session)

    async def open(
        self,
        span: Span,
        *,
        next: NextHop | None = None,
        bridged: bool = False,
        max_tokens: int = 64,
        reuse: bool = True,
    ) -> None:
        """Say Open; the answer is still to come."""
        await self.send(Open(self.session, MANIFEST.digest, span, max_tokens, next, bridged, reuse=reuse))

    async def attach(self, session: bytes, stage: int = 4) -> None:
        """Say Attach."""
        self.session = session
        await self.send(Attach(session, stage))

    async def send(self, message: Message) -> None:
        """Send a message."""
        await self.channel.send(message)

    async def step(
        self, number: int, position: int, inputs: Tensor, want: Want, fill: int | None = None
    ) -> None:
        """Send a Step."""
        await self.send(Step(number, position, inputs, want, fill))

    async def expect(self, kind: type[M]) -> M:
        """The next message, which must be of a kind."""
        return await self.channel.expect(kind, 5)

    async def gather(self, until: Callable[[Message], bool]) -> list[Message]:
        """Messages up to the first that `until` accepts."""
        messages: list[Message] = []
        with trio.fail_after(5):
            while not messages or not until(messages[-1]):
                message = await self.channel.receive()
                assert message is not None, f"the stream ended after {messages}"
                messages.append(message)
        return messages

    async def ended(self) -> None:
        """Wait until the hop has closed the stream."""
        with trio.fail_after(5):
            while await self.channel.receive() is not None:
                pass


def acked(number: int) -> Callable[[Message], bool]:
    """Stops a `gather` at the Ack of a step."""
    return lambda message: isinstance(message, Ack) and message.number == number


async def opened(client: Client, span: Span, **more: Any) -> Client:
    """Open a session as `Client.open` does, and take the grant."""
    await client.open(span, **more)
    await client.expect(Opened)
    return client


def ids_of(message: Message) -> list[list[int]]:
    """The candidates of an Output."""
    assert isinstance(message, Output)
    assert message.candidates is not None
    ids: list[list[int]] = message.candidates.ids.tolist()
    return ids


def hidden_of(message: Message) -> list[list[float]]:
    """The hidden states of an Output."""
    assert isinstance(message, Output)
    assert message.hidden is not None
    rows: list[list[float]] = message.hidden.numpy().tolist()
    return rows


def expected_ids(tokens: list[int]) -> list[list[int]]:
    """The three best ids that the unsplit model gives, a row per token."""
    ids: list[list[int]] = run_whole(tokens, STAGES, Want("candidates", every=True, top=3)).ids.tolist()
    return ids
