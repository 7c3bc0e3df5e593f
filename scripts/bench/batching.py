"""What several sessions at one node get together, and how long a prompt holds up whoever decodes.

    python scripts/bench/batching.py [--quick] [--engine] [--json FILE] [--plot FILE.png]

A random 0.5B-shaped Llama is served whole by one node: in int8 by the native kernels, and in fp32 by torch. 1, 2, 4,
8 and 16 sessions of one client decode greedily at once, turn by turn; `aggregate_N` is the median over the turns of
their tokens per second together over those of one session. `longest_gap_ratio` is the longest time between two tokens
of a session while another's prompt of 2,048 tokens is computed, over its usual one, the median over the turns.

The node is a process and the client another, over QUIC on loopback. With `--engine` the same engine loop runs in this
process and nothing is sent. What rows cost when weights do not count bounds the ratio: `aggregate_limit` is a lone
step's time over that of one row of many, in this process. `--quick` has fewer layers and fewer turns.
"""

from __future__ import annotations

import itertools
import math
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import trio
from common import HALF_BILLION, arguments, local_swarm, report
from plots import draw_lines

import swarm
from node.compute.call import run_alone
from node.compute.interfaces import Call, Engine, StepResult
from node.compute.loop import EngineLoop, Given, Outcome, WorkerThread
from node.compute.measure import measure
from node.compute.scheduler import Owner, Piece, Scheduler
from node.compute.sizing import Sizer
from node.hop.steps import join, piece_want
from protocol import limits
from protocol.candidates import NOTHING, Candidates, Want
from protocol.model import Span
from protocol.tensors import from_numpy

PROMPT = 32
LONG_PROMPT = 2048
SESSIONS = (1, 2, 4, 8, 16)
# Rows of a prefill that read the weights once and cost what rows cost.
MANY_ROWS = 256

Step = Callable[[Sequence[int]], Awaitable[int]]


class Target(Protocol):
    """Where sessions are opened."""

    def open(self, max_tokens: int) -> AbstractAsyncContextManager[Step]:
        """A session: a function that pushes tokens and returns the best next one."""


class Remote:
    """A node, by a client."""

    def __init__(self, client: swarm.Client) -> None:
        self._client = client

    @asynccontextmanager
    async def open(self, max_tokens: int) -> AsyncIterator[Step]:
        """See `Target`."""
        async with self._client.session(max_tokens=max_tokens) as session:

            async def step(tokens: Sequence[int]) -> int:
                found = await session.step(tokens)
                assert found is not None
                return int(found.ids[-1, 0])

            yield step


class Local:
    """An engine and the loop that a node runs it by."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._executor = WorkerThread()
        self._loop = EngineLoop(engine, self._executor, Scheduler(), Sizer(measure(engine), len(engine.span)))
        self._keys = itertools.count()

    @asynccontextmanager
    async def open(self, max_tokens: int) -> AsyncIterator[Step]:
        """See `Target`."""
        session = LocalSession(self._engine, self._loop, next(self._keys), max_tokens)
        yield session.step
        self._loop.drop(session)
        session.cache.close()

    def close(self) -> None:
        """End the thread."""
        self._executor.close()


class LocalSession:
    """See `node.compute.loop.Runnable`."""

    def __init__(self, engine: Engine, loop: EngineLoop, key: int, max_tokens: int) -> None:
        self.key = key
        self.owner = Owner(str(key), str(key))
        self.cache = engine.new_cache(engine.span, max_tokens)
        self._loop = loop
        self._inputs = from_numpy(np.zeros(0, np.int32))
        self._parts: list[StepResult] = []
        self._steps = 0
        self._done = trio.Event()

    async def step(self, tokens: Sequence[int]) -> int:
        """Push tokens, as a client cuts them, and take the best next one."""
        for start in range(0, len(tokens), limits.STEP_TOKENS):
            self._inputs = from_numpy(np.array(tokens[start : start + limits.STEP_TOKENS], np.int32))
            self._parts, self._done = [], trio.Event()
            self._loop.submit(self, self._steps, self._inputs.rows)
            await self._done.wait()
            self._steps += 1
        found = join(self._parts)
        assert isinstance(found, Candidates)
        return int(found.ids[-1, 0])

    def prepare(self, piece: Piece) -> list[Call]:
        """See `node.compute.loop.Runnable`."""
        rows = self._inputs.row_slice(piece.start, piece.stop)
        return [Call(self.cache, self.cache.length, rows, piece_want(Want(top=1), last=piece.last))]

    def take(self, piece: Piece, outcome: Outcome[Given], *, alone: bool) -> None:
        """See `node.compute.loop.Runnable`."""
        if outcome.error is not None:
            raise outcome.error
        self._parts += outcome.result or ()
        if piece.last:
            self._done.set()

    def pass_on(self) -> None:
        """See `node.compute.loop.Runnable`."""


@dataclass(frozen=True)
class Plan:
    """How much is measured."""

    layers: int
    turns: int
    tokens: int


async def together(target: Target, sessions: int, tokens: int) -> float:
    """Tokens per second of so many sessions together, the first token of each apart."""
    ready: list[None] = []
    all_ready = trio.Event()
    began = math.inf

    async def decode(number: int) -> None:
        nonlocal began
        async with target.open(PROMPT + tokens + 1) as step:
            feed = await step(range(1 + number, 1 + number + PROMPT))
            ready.append(None)
            if len(ready) == sessions:
                all_ready.set()
            await all_ready.wait()
            began = min(began, time.perf_counter())
            for _ in range(tokens):
                feed = await step([feed])

    async with trio.open_nursery() as nursery:
        for number in range(sessions):
            nursery.start_soon(decode, number)
    return sessions * tokens / (time.perf_counter() - began)


async def gaps(target: Target, tokens: int) -> tuple[float, float, float]:
    """The usual seconds between two tokens; the longest, while another session's long prompt is computed; how long
    the prompt took."""
    times: list[float] = []
    prompt: list[float] = []
    quiet = trio.Event()

    async def prefill() -> None:
        async with target.open(LONG_PROMPT) as step:
            await quiet.wait()
            # Another one each time: a node knows what it computed before.
            ids = np.random.default_rng().integers(1, HALF_BILLION.vocabulary, LONG_PROMPT).tolist()
            prompt.append(time.perf_counter())
            await step(ids)
            prompt.append(time.perf_counter())

    async with target.open(1500) as step, trio.open_nursery() as nursery:
        nursery.start_soon(prefill)
        feed = await step(range(1, 1 + PROMPT))
        while len(prompt) < 2:
            times.append(time.perf_counter())
            if len(times) == tokens:
                quiet.set()
            feed = await step([feed])
    between = list(itertools.pairwise(times))
    usual = statistics.median(b - a for a, b in between if b <= prompt[0])
    return usual, max(b - a for a, b in between if b > prompt[0]), prompt[1] - prompt[0]


@dataclass
class Found:
    """What was measured of one target."""

    speeds: dict[int, list[float]]
    gaps: list[tuple[float, float, float]]

    def ratio(self, sessions: int) -> float:
        """So many together over one, the median over the turns."""
        return statistics.median(
            many / one for many, one in zip(self.speeds[sessions], self.speeds[1], strict=True)
        )


async def measured(target: Target, plan: Plan, counts: Sequence[int], *, with_gaps: bool) -> Found:
    """All turns, after one for warming up."""
    found = Found({count: [] for count in counts}, [])
    await together(target, counts[-1], 2)
    for _ in range(plan.turns):
        for count in counts:
            found.speeds[count].append(await together(target, count, plan.tokens))
        if with_gaps:
            found.gaps.append(await gaps(target, plan.tokens))
    return found


async def through_node(addr: str, plan: Plan, counts: Sequence[int], with_gaps: bool) -> Found:
    """Over QUIC."""
    async with swarm.connect(addr, remember=False, reuse=False) as client:
        return await measured(Remote(client), plan, counts, with_gaps=with_gaps)


async def through_loop(engine: Engine, plan: Plan, counts: Sequence[int], with_gaps: bool) -> Found:
    """In this process."""
    target = Local(engine)
    try:
        return await measured(target, plan, counts, with_gaps=with_gaps)
    finally:
        target.close()


def load_native(folder: Path, threads: int) -> Engine:
    """The whole model in int8."""
    from node.native.backend import NativeBackend

    backend = NativeBackend.open(str(folder), "int8", threads=threads)
    return backend.load(Span(0, backend.model.manifest.stages))


def load_torch(folder: Path, threads: int) -> Engine:
    """The whole model in fp32."""
    from node.engine.backend import TorchBackend
    from node.engine.threads import configure_threads

    configure_threads(threads)
    backend = TorchBackend.open(str(folder), cache_dir=None, dtype="f32", device="cpu", threads=threads)
    return backend.load(Span(0, backend.model.stages))


def limit_of(engine: Engine) -> float:
    """A lone step's time over that of one row of many."""
    cache = engine.new_cache(engine.span)
    many, one = (from_numpy(np.ones(rows, np.int32)) for rows in (MANY_ROWS, 1))

    def best(rows: Any, want: Want) -> float:
        found = []
        for _ in range(5):
            begin = time.perf_counter()
            run_alone(engine, cache, 0, rows, want)
            found.append(time.perf_counter() - begin)
        return min(found)

    return best(one, Want(top=1)) / (best(many, NOTHING) / MANY_ROWS)


def rows_of(name: str, found: Found) -> list[dict[str, Any]]:
    """Lines of the table."""
    return [
        {
            "engine": name,
            "sessions": count,
            "best_tok_s": max(speeds),
            "median_tok_s": statistics.median(speeds),
            "ratio": found.ratio(count),
        }
        for count, speeds in found.speeds.items()
    ]


def main() -> None:
    """Measure, print, write."""
    parser = arguments(__doc__ or "", plot=True)
    parser.add_argument("--engine", action="store_true", help="the engine loop alone, in this process")
    parser.add_argument("--threads", type=int, default=2, help="of the node (default: 2)")
    options = parser.parse_args()
    plan = Plan(layers=8, turns=2, tokens=24) if options.quick else Plan(layers=24, turns=3, tokens=32)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        replace(HALF_BILLION, layers=plan.layers).write(folder)

        def run(quant: bool, counts: Sequence[int]) -> Found:
            if options.engine:
                engine = (load_native if quant else load_torch)(folder, options.threads)
                return trio.run(partial(through_loop, engine, plan, counts, quant))
            which = ["--quant", "int8"] if quant else ["--engine", "torch", "--dtype", "f32"]
            extra = ["--threads", str(options.threads), *which]
            with local_swarm(folder, [f"0:{plan.layers}"], extra) as running:
                return trio.run(partial(through_node, running.join, plan, counts, quant))

        int8, fp32 = run(True, SESSIONS), run(False, (1, 8))
        limit = limit_of(load_native(folder, options.threads))
    summary = {f"aggregate_{count}": int8.ratio(count) for count in SESSIONS[1:]}
    summary["aggregate_8_fp32"] = fp32.ratio(8)
    summary["aggregate_limit"] = limit
    summary["longest_gap_ratio"] = statistics.median(longest / usual for usual, longest, _ in int8.gaps)
    summary["usual_gap_ms"] = 1e3 * statistics.median(usual for usual, _, _ in int8.gaps)
    summary["longest_gap_ms"] = 1e3 * statistics.median(longest for _, longest, _ in int8.gaps)
    summary["prompt_s"] = statistics.median(took for _, _, took in int8.gaps)
    report(summary, rows_of("int8", int8) + rows_of("fp32, torch", fp32), options.json)
    if options.plot is not None:
        lines = {
            engine: [(n, statistics.median(speeds)) for n, speeds in found.speeds.items()]
            for engine, found in (("int8, native", int8), ("fp32, torch", fp32))
        }
        title = f"Sessions at one node, {plan.layers} layers of a 0.5B shape"
        draw_lines(options.plot, title, ("sessions", "tokens per second together"), lines)


if __name__ == "__main__":
    main()
