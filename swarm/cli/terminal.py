"""What is written where: answers to standard output, everything about them to standard error or dimmed."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, TextIO

from rich.cells import cell_len
from rich.console import Console, RenderableType
from rich.text import Text

from protocol.plain import one_line, printable

# Drawn where the terminal's encoding has them, else what stands beside.
_PLAIN: Final = {
    "█": "#",
    "·": "-",
    "…": "...",
    "↻": "*",
    "✓": "+",
    "✗": "x",
    "→": "->",
    "—": "-",
    "░": ".",
    "▒": "=",
}


@dataclass(frozen=True, slots=True)
class Terminal:
    """Both outputs. `out.is_terminal` says whether a person reads the answer as it comes."""

    out: Console
    err: Console

    @property
    def beside(self) -> Console:
        """Where remarks go: beside the answer for a person, to standard error for a pipe."""
        return self.out if self.out.is_terminal else self.err

    def glyphs(self, text: str) -> str:
        """`text`, drawn with what the terminal's encoding has."""
        try:
            text.encode(self.beside.encoding)
        except (UnicodeEncodeError, LookupError):
            return "".join(_PLAIN.get(char, char) for char in text)
        return text

    def remark(self, *lines: str, style: str = "dim") -> None:
        """About the answer or the swarm; for a person lines are broken between words."""
        soft = not self.beside.is_terminal
        for line in lines:
            text = self.glyphs(one_line(line)) if line else ""
            self.beside.print(Text(text, style=style), soft_wrap=soft)

    def fail(self, line: str) -> None:
        """One line on standard error: what went wrong."""
        self.err.print(Text.assemble(("error: ", "bold red"), self.glyphs(one_line(line))), soft_wrap=True)

    def explain(self, lines: Iterable[str]) -> None:
        """Lines on standard error, under what went wrong."""
        for line in lines:
            self.err.print(Text(self.glyphs(one_line(line)), style="dim"), soft_wrap=True)

    def show(self, *things: RenderableType) -> None:
        """Tables and bars, on standard output."""
        for thing in things:
            # Lines are left whole, to be copied; tables fit themselves.
            self.out.print(thing, soft_wrap=isinstance(thing, Text))


def open_terminal() -> Terminal:
    """The process's terminal. A character it cannot show becomes a question mark, never an error."""
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        _forgive(stream)
    # A pipe has no width; tables for it are whole.
    width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else 120
    return Terminal(_console(width=width), _console(stderr=True))


def _console(*, stderr: bool = False, width: int | None = None) -> Console:
    """Text is text: what looks like rich's markup or the name of an emoji may be a stranger's."""
    return Console(stderr=stderr, width=width, markup=False, emoji=False, highlight=False)


def _forgive(stream: TextIO) -> None:
    # Changing a stream flushes it, which one that is broken does not survive; our own forgive already.
    if stream.errors != "replace" and hasattr(stream, "reconfigure"):
        stream.reconfigure(errors="replace")


class Printer:
    """Streams an answer to standard output; remarks that come meanwhile stand above the line being written.

    May be told of remarks from another thread.
    """

    def __init__(self, terminal: Terminal) -> None:
        self._terminal = terminal
        self._lock = threading.Lock()
        self._line = ""  # what stands on the line being written
        self._moves = terminal.out.is_terminal and not terminal.out.is_dumb_terminal

    def write(self, text: str) -> None:
        """More of the answer, at once on the screen."""
        with self._lock:
            if self._terminal.out.is_terminal:
                text = printable(text).expandtabs(4)
            self._put(text)
            self._line = (self._line + text).rpartition("\n")[2]

    def end(self) -> None:
        """The answer is over: the next thing written starts a line."""
        with self._lock:
            if self._line:
                self._put("\n")
            self._line = ""

    def remark(self, line: str, *, style: str = "dim") -> None:
        """A line that does not tear the text."""
        with self._lock:
            if not self._line or not self._terminal.out.is_terminal:
                self._terminal.remark(line, style=style)
                return
            rows = max(1, -(-cell_len(self._line) // self._terminal.out.width))
            if self._moves and rows < self._terminal.out.height:
                # Up to the line's first row, clear from there, and write it again below the remark.
                self._put((f"\x1b[{rows - 1}A" if rows > 1 else "") + "\r\x1b[J")
                self._terminal.remark(line, style=style)
                self._put(self._line)
            else:
                self._put("\n")
                self._terminal.remark(line, style=style)

    def _put(self, text: str) -> None:
        file = self._terminal.out.file
        file.write(text)
        file.flush()
