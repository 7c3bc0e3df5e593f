"""The terminal of one command, and what is known to tell its events by."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial

from swarm.cli.streams import OutputLost
from swarm.cli.terminal import Printer, Terminal
from swarm.cli.words import Names, News
from swarm.events import Event


class Screen:
    """Where answers and remarks of one command go."""

    def __init__(self, terminal: Terminal, names: Names | None = None) -> None:
        self.terminal = terminal
        self.printer = Printer(terminal)
        self.news = News(names)

        self._beside: Callable[[Callable[[], None]], None] = _now

    @contextlib.contextmanager
    def beside(self, how: Callable[[Callable[[], None]], None]) -> Iterator[None]:
        """While this is entered, news is shown by `how`, which knows what else is on the screen."""
        self._beside = how
        try:
            yield
        finally:
            self._beside = _now

    def event(self, event: Event) -> None:
        """Show what happened beside the answer; may be called in another thread."""
        if line := self.news.line(event):
            self._beside(partial(self._remark, line))

    def _remark(self, line: str) -> None:
        with contextlib.suppress(OutputLost):  # the thread that writes the answer finds out by itself
            self.printer.remark(line, style="yellow")


def _now(show: Callable[[], None]) -> None:
    show()
