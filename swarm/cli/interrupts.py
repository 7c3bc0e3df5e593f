"""Signals as a conversation wants them: Ctrl-C ends what goes on and no more, and who is told to go tidies up."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Final

# By default these end the process on the spot, with the terminal as it happens to be.
_LEAVING: Final = (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


class Interrupts:
    """While entered, Ctrl-C raises KeyboardInterrupt inside `wanted` alone; elsewhere it is noted, and never lost.

    An exception at any odd place would end the chat, or leave a lock or the terminal in disorder.
    """

    def __init__(self) -> None:
        self._wanted = False
        self._noted = False
        self._before: dict[int, Any] = {}
        self.heard: Callable[[], None] = _nothing
        """Called at each signal, between any two instructions of the main thread."""

    def __enter__(self) -> Interrupts:
        self._before[signal.SIGINT] = signal.signal(signal.SIGINT, self._interrupt)
        for number in _LEAVING:
            if signal.getsignal(number) is signal.SIG_DFL:
                self._before[number] = signal.signal(number, leave)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextmanager
    def wanted(self) -> Iterator[None]:
        """Around what Ctrl-C is to end: raises KeyboardInterrupt, once, also for one that was noted before."""
        self._wanted = True
        try:
            if self.take():
                self._wanted = False
                raise KeyboardInterrupt
            yield
        finally:
            self._wanted = False

    def note(self) -> None:
        """As if one had come."""
        self._noted = True

    def take(self) -> bool:
        """Whether one was noted, which is then dealt with."""
        noted, self._noted = self._noted, False
        return noted

    def _interrupt(self, _number: int, _frame: object) -> None:
        self.heard()
        if self._wanted:
            self._wanted = False  # a second one must not end the tidying that the first one brings about
            raise KeyboardInterrupt
        self._noted = True


def leave(number: int, _frame: object) -> None:
    """A handler of signals: let the `with` blocks end what they own. A second such signal ends the process."""
    signal.signal(number, signal.SIG_DFL)
    raise SystemExit(128 + number)


def _nothing() -> None:
    pass
