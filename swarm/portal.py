"""A trio loop in a background thread, and calls into it that Ctrl-C can end. Knows nothing of the swarm."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterator
from concurrent.futures import Future, wait
from contextlib import AbstractAsyncContextManager, aclosing, contextmanager
from types import TracebackType
from typing import Any, Final, Generic, Protocol, TypeVar

import trio

from protocol.errors import LocalProtocolError

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class Closable(Protocol[T_co]):
    """What an async generator is to whoever iterates it."""

    def __aiter__(self) -> AsyncIterator[T_co]: ...

    async def aclose(self) -> None: ...


# A signal that comes at the very moment at which a thread begins to wait is noticed only when the wait is over.
_NOTICE_S: Final = 0.5


class Job(Generic[T]):
    """One coroutine that runs in the loop, and its outcome, which nobody but the loop settles."""

    def __init__(self, token: trio.lowlevel.TrioToken, work: Callable[[], Awaitable[T]]) -> None:
        self._token = token
        self._work = work
        self._scope = trio.CancelScope()
        self.outcome: Future[T] = Future()
        self.outcome.set_running_or_notify_cancel()

    async def run(self) -> None:
        try:
            with self._scope:
                self.outcome.set_result(await self._work())
        except Exception as error:  # noqa: BLE001 - raised again in the thread that waits for it
            self.outcome.set_exception(error)
        finally:
            if not self.outcome.done():
                self.outcome.set_exception(LocalProtocolError("the work was cancelled"))

    def result(self) -> T:
        """Wait for the outcome; a KeyboardInterrupt meanwhile cancels the work first."""
        try:
            while not wait((self.outcome,), _NOTICE_S).done:
                pass
            return self.outcome.result()
        except BaseException:
            self.cancel()
            raise

    def cancel(self) -> None:
        """Cancel the work and wait until it has cleaned up. Safe when it is over."""
        if self.cancel_nowait():
            self.outcome.exception()

    def cancel_nowait(self) -> bool:
        """Cancel the work, and leave it to clean up; whether there is still a loop for it to do so in."""
        try:
            self._token.run_sync_soon(self._scope.cancel)
        except trio.RunFinishedError:
            return False
        return True


class Portal:
    """Owns the thread; everything started through it has ended when the `with` block has."""

    def __init__(self) -> None:
        self._started: Future[tuple[trio.lowlevel.TrioToken, trio.Nursery]] = Future()
        self._thread = threading.Thread(target=self._run, name="swarm", daemon=True)

    def __enter__(self) -> Portal:
        self._thread.start()
        self._token, self._nursery = self._started.result()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(trio.RunFinishedError):
            self._token.run_sync_soon(self._nursery.cancel_scope.cancel)
        self._thread.join()

    def call(self, function: Callable[..., Awaitable[T]], *args: Any) -> T:
        """`await function(*args)` in the loop."""
        return self.start(lambda: function(*args)).result()

    def iterate(self, make: Callable[[], Closable[T]]) -> Generator[T, None, None]:
        """The values of an async generator (or its like) as they come; leaving the loop early closes it."""
        # Bounded by what one generator yields: the maker runs ahead of a slow reader, as a network would.
        values: queue.SimpleQueue[tuple[T] | None] = queue.SimpleQueue()

        async def pump() -> None:
            try:
                async with aclosing(make()) as generator:
                    async for value in generator:
                        values.put((value,))
            finally:
                values.put(None)

        job = self.start(pump)
        try:
            while (value := _next(values)) is not None:
                yield value[0]
            job.result()
        finally:
            job.cancel()

    @contextmanager
    def holding(self, manager: AbstractAsyncContextManager[T]) -> Iterator[T]:
        """An async context manager, entered and left in the loop by one task."""
        entered: Future[T] = Future()
        leave = trio.Event()

        async def hold() -> None:
            try:
                async with manager as value:
                    entered.set_result(value)
                    await leave.wait()
            except Exception as error:
                if entered.done():
                    raise
                entered.set_exception(error)
            finally:
                if not entered.done():
                    entered.set_exception(LocalProtocolError("the work was cancelled"))

        job = self.start(hold)
        try:
            yield entered.result()
            with contextlib.suppress(trio.RunFinishedError):
                self._token.run_sync_soon(leave.set)
            job.result()
        finally:
            job.cancel()

    def soon(self, function: Callable[[], object]) -> None:
        """Call an ordinary function in the loop soon. Raises: trio.RunFinishedError, when there is none any more."""
        self._token.run_sync_soon(function)

    def start(self, work: Callable[[], Awaitable[T]]) -> Job[T]:
        """Run `work` in the loop, without waiting for it."""
        job = Job(self._token, work)
        self._token.run_sync_soon(self._nursery.start_soon, job.run)
        return job

    def _run(self) -> None:
        async def main() -> None:
            async with trio.open_nursery() as nursery:
                self._started.set_result((trio.lowlevel.current_trio_token(), nursery))
                await trio.sleep_forever()

        trio.run(main)


def _next(values: queue.SimpleQueue[T]) -> T:
    while True:
        with contextlib.suppress(queue.Empty):
            return values.get(timeout=_NOTICE_S)
