"""The one thread that computes, and the loop that keeps it busy.

A batch is handed over and handed back without a task of its own, and the event loop woken once for all that it gives:
a queue to the thread, `run_sync_soon` back (27 us there and back, where `trio.to_thread` takes 43 us).
"""

from __future__ import annotations

import atexit
import contextlib
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Generic, Protocol, TypeVar

import trio

from node.compute.call import run_apart
from node.compute.company import Company
from node.compute.counts import Counts
from node.compute.interfaces import Call, Engine, StepResult
from node.compute.scheduler import DECODE_ROWS, Owner, Piece, Scheduler
from node.compute.sizing import Sizer

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Outcome(Generic[T]):
    """How a piece of work ended, and with what; times by `time.perf_counter`, in seconds."""

    result: T | None
    error: Exception | None
    started: float
    ended: float


# A batch takes seconds at most, however large the model and slow the machine.
FINISH_WITHIN_S = 10.0


class Executor(Protocol):
    """Runs work one at a time, in order; calls `done` in the event loop after each, and never inside another."""

    def submit(self, work: Callable[[], T], done: Callable[[Outcome[T]], None]) -> None:
        """Run `work`, which may block, then call `done` with how it ended. Never blocks."""


def attempt(work: Callable[[], T]) -> Outcome[T]:
    """Do it, and say how it ended."""
    started = time.perf_counter()
    result: T | None = None
    error = None
    try:
        result = work()
    except Exception as raised:  # noqa: BLE001 - it is handed to the event loop, which logs it
        error = raised
    return Outcome(result, error, started, time.perf_counter())


def _forget_frames(error: BaseException | None) -> None:
    """An error knows the frames that it passed, and one of them the error: what they hold would stay until a
    collection, and that is a whole session."""
    while error is not None:
        error.__traceback__ = None
        error = error.__cause__ or error.__context__


class WorkerThread:
    """An executor with one thread, which begins with the first work and ends with `close` or with the process."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[tuple[Callable[[], Any], Callable[[Any], None]] | None]
        self._queue = queue.SimpleQueue()
        self._token: trio.lowlevel.TrioToken | None = None

    def submit(self, work: Callable[[], T], done: Callable[[Outcome[T]], None]) -> None:
        """See `Executor`."""
        if self._token is None:
            self._token = trio.lowlevel.current_trio_token()
            # A daemon: the process's end waits for it in `_finish`, and not for ever.
            thread = threading.Thread(target=self._run, args=(self._token,), name="engine", daemon=True)
            thread.start()
            atexit.register(self._finish, thread)
        self._queue.put((work, done))

    def close(self) -> None:
        """End the thread once it has done what it was given."""
        self._queue.put(None)

    def _finish(self, thread: threading.Thread) -> None:
        """Let what runs come to its end: a thread that finds the interpreter gone aborts the process."""
        self.close()
        with contextlib.suppress(KeyboardInterrupt):
            thread.join(FINISH_WITHIN_S)

    def _run(self, token: trio.lowlevel.TrioToken) -> None:
        while (given := self._queue.get()) is not None:
            work, done = given
            outcome = attempt(work)
            try:
                token.run_sync_soon(done, outcome)
            except trio.RunFinishedError:
                return
            # Nothing of the last batch is kept alive while waiting for the next.
            del given, work, done, outcome


Given = Sequence[StepResult]  # what the calls of one piece give, in order


class Runnable(Protocol):
    """A session, as the loop sees it."""

    @property
    def key(self) -> int:
        """A number of its own."""

    @property
    def owner(self) -> Owner:
        """Whose it is."""

    def prepare(self, piece: Piece) -> Sequence[Call]:
        """The calls that run a piece; none if nobody waits for it any more. Called in the worker thread."""

    def take(self, piece: Piece, outcome: Outcome[Given], *, alone: bool) -> None:
        """The piece has run, and its calls gave this, or one of them failed; `alone`: nothing else was in its batch.
        Called in the event loop; must not raise.

        The outcome's error loses its traceback afterwards: log it now.
        """

    def pass_on(self) -> None:
        """Send on what it has taken: if anything waits, the thread is at that by now. Must not raise."""


_Turn = tuple[Runnable, Piece]


class EngineLoop:
    """Owns the engine: has the executor run the next batch on it as soon as the last is done, or a moment later where
    that is better for all (`company`).

    `sizer`, if given, sets the scheduler's budget, and the patience, by what batches take; without it nobody waits.
    """

    def __init__(
        self,
        engine: Engine,
        executor: Executor,
        scheduler: Scheduler,
        sizer: Sizer | None = None,
        counts: Counts | None = None,
    ) -> None:
        self._engine = engine
        self.executor = executor
        self.scheduler = scheduler
        self._sizer = sizer
        self._counts = counts if counts is not None else Counts()
        self._runnables: dict[int, Runnable] = {}
        self._company = Company()
        self._busy = False  # a batch runs, or one waits for company
        self._waiting: trio.CancelScope | None = None
        self._ended_at = float("-inf")
        self._measured()

    def idle_s(self, now: float) -> float:
        """How long nothing has been computed; `now` as of `time.perf_counter`."""
        return 0.0 if self._busy else now - self._ended_at

    def submit(self, runnable: Runnable, number: int, rows: int) -> None:
        """Run step `number` of `runnable` in its turn."""
        self._runnables[runnable.key] = runnable
        now = trio.current_time()
        self.scheduler.add(runnable.key, number, rows, now, runnable.owner)
        self._company.comes(runnable.key, now)
        if not self._busy:
            self._next()
        else:
            self._look_round()

    def drop(self, runnable: Runnable) -> None:
        """Forget the steps of `runnable` that have not begun."""
        self.scheduler.drop(runnable.key)
        self._runnables.pop(runnable.key, None)
        self._company.forget(runnable.key)
        self._look_round()

    def _next(self) -> None:
        """Begin what waits, once those who are expected are there."""
        now = trio.current_time()
        until = self._company.until(now) if self.scheduler.has_room else now
        if until > now:
            self._busy = True
            self._waiting = trio.CancelScope()
            trio.lowlevel.spawn_system_task(self._wait, self._waiting, until - now)
        else:
            self._begin()

    async def _wait(self, scope: trio.CancelScope, seconds: float) -> None:
        with scope:
            await trio.sleep(seconds)
        if self._waiting is scope:
            self._waiting = None
            self._begin()

    def _look_round(self) -> None:
        """Wait no longer if nobody is expected any more."""
        if self._waiting is not None and not self._company.expected:
            self._waiting.cancel()
            self._waiting = None
            self._begin()

    def _begin(self) -> None:
        pieces = self.scheduler.take(trio.current_time())
        self._busy = bool(pieces)
        if pieces:
            turns = [(self._runnables[piece.session], piece) for piece in pieces]
            self.executor.submit(lambda: self._run(turns), lambda outcome: self._done(turns, outcome))

    def _run(self, turns: Sequence[_Turn]) -> list[Given | Exception]:
        """What each piece gives, or an error of one of its calls. In the worker thread."""
        prepared: list[Sequence[Call] | Exception] = []
        for runnable, piece in turns:
            try:
                prepared.append(runnable.prepare(piece))
            except Exception as error:  # noqa: BLE001 - it is handed to its session, which logs it
                prepared.append(error)
        calls = [call for each in prepared if not isinstance(each, Exception) for call in each]
        given = iter(run_apart(self._engine, calls) if calls else ())
        return [
            each if isinstance(each, Exception) else _unless_failed([*islice(given, len(each))])
            for each in prepared
        ]

    def _done(self, turns: Sequence[_Turn], batch: Outcome[list[Given | Exception]]) -> None:
        failed: list[Given | Exception] = [] if batch.error is None else [batch.error] * len(turns)
        for (runnable, piece), given in zip(turns, batch.result or failed, strict=True):
            self.scheduler.finish(piece.session)
            error = given if isinstance(given, Exception) else None
            result = None if isinstance(given, Exception) else given
            runnable.take(piece, Outcome(result, error, batch.started, batch.ended), alone=len(turns) == 1)
            _forget_frames(error)
            if error is None and self._goes_out(piece):
                self._company.leaves(piece.session, trio.current_time())
        others_wait = self.scheduler.may_take
        if others_wait:  # the thread is not to stand still
            self._learn_and_go_on(turns, batch)
        for runnable, _ in turns:
            runnable.pass_on()
        if not others_wait:
            self._learn_and_go_on(turns, batch)

    def _learn_and_go_on(self, turns: Sequence[_Turn], batch: Outcome[list[Given | Exception]]) -> None:
        if batch.error is None:
            rows, took_s = sum(piece.rows for _, piece in turns), batch.ended - batch.started
            self._counts.batch(rows, len(turns), took_s)
            if self._sizer is not None:
                self._sizer.observe(rows, took_s * 1e3)
                self._measured()
        self._ended_at = batch.ended
        self._next()

    def _goes_out(self, piece: Piece) -> bool:
        """Whether its session decodes, and has nothing else here."""
        is_short = piece.last and piece.rows <= DECODE_ROWS
        return is_short and piece.session in self._runnables and not self.scheduler.has(piece.session)

    def _measured(self) -> None:
        if self._sizer is not None:
            self.scheduler.budget = self._sizer.budget
            self._company.patience_s = self._sizer.patience_s


def _unless_failed(given: Sequence[StepResult | Exception]) -> Given | Exception:
    """What all calls of a piece gave, or the first error."""
    results = [each for each in given if not isinstance(each, Exception)]
    if len(results) == len(given):
        return results
    return next(each for each in given if isinstance(each, Exception))
