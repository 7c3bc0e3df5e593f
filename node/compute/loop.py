"""The one thread that computes, and the loop that keeps it busy.

A step is handed over and handed back without a task of its own: a queue to the thread, `run_sync_soon` back (27 us
there and back, where `trio.to_thread` takes 43 us).
"""

from __future__ import annotations

import atexit
import contextlib
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import trio

from node.compute.call import run_checked
from node.compute.interfaces import Call, Engine, StepResult
from node.compute.scheduler import Owner, Piece, Scheduler
from protocol.errors import SwarmError


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a piece of work ended, and with what; times by `time.perf_counter`, in seconds."""

    result: StepResult
    error: Exception | None
    started: float
    ended: float


# A piece of a step takes seconds at most, however large the model and slow the machine.
FINISH_WITHIN_S = 10.0

Work = Callable[[], StepResult]
Done = Callable[[Outcome], None]


class Executor(Protocol):
    """Runs work one at a time, in order; calls `done` in the event loop after each."""

    def submit(self, work: Work, done: Done) -> None:
        """Run `work`, which may block, then call `done` with how it ended. Never blocks."""


def attempt(work: Work) -> Outcome:
    """Do it, and say how it ended."""
    started = time.perf_counter()
    result: StepResult = None
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
        self._queue: queue.SimpleQueue[tuple[Work, Done] | None] = queue.SimpleQueue()
        self._token: trio.lowlevel.TrioToken | None = None

    def submit(self, work: Work, done: Done) -> None:
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
            # Nothing of the last step is kept alive while waiting for the next.
            del given, work, done, outcome


class Runnable(Protocol):
    """A session, as the loop sees it."""

    @property
    def key(self) -> int:
        """A number of its own."""

    @property
    def owner(self) -> Owner:
        """Whose it is."""

    def prepare(self, piece: Piece) -> Call | None:
        """The call that runs a piece; None if nobody waits for it any more. Called in the worker thread."""

    def take(self, piece: Piece, outcome: Outcome) -> None:
        """The piece has run, or failed. Called in the event loop; must not raise.

        The outcome's error loses its traceback afterwards: log it now.
        """


class EngineLoop:
    """Owns the engine: has the executor run the next piece on it as soon as the last is done."""

    def __init__(self, engine: Engine, executor: Executor, scheduler: Scheduler) -> None:
        self._engine = engine
        self.executor = executor
        self.scheduler = scheduler
        self._runnables: dict[int, Runnable] = {}
        self._busy = False

    def submit(self, runnable: Runnable, number: int, rows: int) -> None:
        """Run step `number` of `runnable` in its turn."""
        self._runnables[runnable.key] = runnable
        self.scheduler.add(runnable.key, number, rows, time.perf_counter(), runnable.owner)
        if not self._busy:
            self._next()

    def drop(self, runnable: Runnable) -> None:
        """Forget the steps of `runnable` that have not begun."""
        self.scheduler.drop(runnable.key)
        self._runnables.pop(runnable.key, None)

    def _next(self) -> None:
        piece = self.scheduler.take(time.perf_counter())
        self._busy = piece is not None
        if piece is not None:
            runnable = self._runnables[piece.session]
            self.executor.submit(
                lambda: self._run(runnable, piece), lambda outcome: self._done(runnable, piece, outcome)
            )

    def _run(self, runnable: Runnable, piece: Piece) -> StepResult:
        """In the worker thread."""
        call = runnable.prepare(piece)
        if call is None:
            return None
        [given] = run_checked(self._engine, [call])
        if isinstance(given, SwarmError):
            raise given
        return given

    def _done(self, runnable: Runnable, piece: Piece, outcome: Outcome) -> None:
        self.scheduler.finish(piece.session)
        runnable.take(piece, outcome)
        _forget_frames(outcome.error)
        self._next()
