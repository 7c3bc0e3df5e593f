"""The terminal of one command, and what is known to tell its events by."""

from __future__ import annotations

import contextlib

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

    def event(self, event: Event) -> None:
        """Show what happened beside the answer; may be called in another thread."""
        if line := self.news.line(event):
            with contextlib.suppress(OutputLost):  # the thread that writes the answer finds out by itself
                self.printer.remark(line, style="yellow")
