"""What reaches the terminal: streamed text with remarks between, in any encoding, and nothing harmful."""

from __future__ import annotations

import io
import logging
import re

import pytest
from rich.console import Console
from rich.table import Table

from swarm.cli.logs import PlainFormatter
from swarm.cli.terminal import Printer, Terminal, open_terminal


class Screen:
    """As much of a terminal as is needed to see what a person sees: rows, a cursor, and two of its sequences."""

    def __init__(self, width: int) -> None:
        self.width = width
        self.rows = [""]
        self.row = 0

    def feed(self, text: str) -> None:
        for part in re.findall(r"\x1b\[\d*[A-Za-z]|\r|\n|.", text):
            if part == "\n":
                self._down()
            elif part == "\r":
                self.column = 0
            elif part.startswith("\x1b"):
                assert part[-1] in "AJ", part
                if part[-1] == "A":
                    self.row -= int(part[2:-1] or 1)
                else:
                    self.rows = [*self.rows[: self.row], ""]
            else:
                if len(self.rows[self.row]) == self.width:
                    self._down()
                self.rows[self.row] += part

    def _down(self) -> None:
        self.row += 1
        if self.row == len(self.rows):
            self.rows.append("")


def a_terminal(width: int = 20, *, person: bool = True) -> tuple[Terminal, io.StringIO, io.StringIO]:
    out, err = io.StringIO(), io.StringIO()
    how = {"width": width, "height": 10, "highlight": False, "_environ": {"TERM": "xterm", "NO_COLOR": "1"}}
    consoles = [Console(file=file, force_terminal=person, **how) for file in (out, err)]  # type: ignore[arg-type]
    return Terminal(*consoles), out, err


@pytest.mark.parametrize("before", ["hello ", "x" * 20, "a line\nand ", "y" * 47])
def test_a_remark_does_not_tear_the_text(before: str) -> None:
    """It stands above the line being written, which goes on where it was; also over several rows."""
    terminal, out, _ = a_terminal()
    printer = Printer(terminal)
    printer.write(before)
    printer.remark("node gone")
    printer.write("world")
    printer.end()
    screen = Screen(20)
    screen.feed(re.sub(r"\x1b\[[0-9;]*m", "", out.getvalue()))
    *lines, last = (before + "world").split("\n")
    rows = [last[i : i + 20] for i in range(0, len(last), 20)]
    assert [row for row in screen.rows if row] == [*lines, "node gone", *rows]


def test_a_remark_on_a_fresh_line_is_just_a_line() -> None:
    """Before the answer, and after it."""
    terminal, out, _ = a_terminal()
    printer = Printer(terminal)
    printer.remark("one")
    printer.write("text")
    printer.end()
    printer.remark("two")
    assert re.sub(r"\x1b\[[0-9;]*m", "", out.getvalue()) == "one\ntext\ntwo\n"


def test_a_pipe_gets_the_text_alone() -> None:
    """Remarks go to standard error; control characters of the text are kept, as the reader may want them."""
    terminal, out, err = a_terminal(person=False)
    printer = Printer(terminal)
    printer.write("te\tx\x1b[31mt")
    printer.remark("gone")
    printer.end()
    assert (out.getvalue(), err.getvalue()) == ("te\tx\x1b[31mt\n", "gone\n")


def test_strangers_cannot_steer_the_terminal() -> None:
    """Escape sequences lose their escape; a model's markup is text."""
    terminal, out, _ = a_terminal(80)
    printer = Printer(terminal)
    printer.write("\x1b[2Jhi")
    terminal.remark("[bold]not[/] markup \x1b[2J")
    assert "\x1b[2J" not in out.getvalue()
    assert "[bold]not[/] markup" in out.getvalue()
    printer.write("\u202eabc\u2066\u200b\x9b2J\r👩\u200d🚀")
    assert out.getvalue().endswith("abc2J👩\u200d🚀")


def test_text_is_no_markup(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """In tables and their titles neither: what looks like it may be a stranger's name."""
    monkeypatch.setenv("COLUMNS", "80")
    table = Table("[red]head[/]", title="[/]title[bold] :smile:")
    table.add_row("[/]cell")
    open_terminal().show(table, "[/]line")
    shown = capsys.readouterr().out
    for text in ("[red]head[/]", "[/]title[bold]", ":smile:", "[/]cell", "[/]line"):
        assert text in shown


def test_a_log_record_is_one_line() -> None:
    """Whatever a library put into it; a traceback stands indented below."""
    formatter = PlainFormatter()
    try:
        raise ValueError("one\nERROR two \x1b[2J\u202e")
    except ValueError as error:
        trace = (ValueError, error, error.__traceback__)
    record = logging.LogRecord("swarm", logging.INFO, "", 0, "from %s", ("x\nready\x1b[2J\u2066",), trace)
    first, *rest = formatter.format(record).split("\n")
    assert first == "from x ready[2J"
    assert len(rest) > 3
    for line in rest:
        assert line.startswith("  ")
        assert line.isprintable()


def test_glyphs_fit_the_encoding() -> None:
    """Bars and dots become ASCII where the terminal has no others."""
    raw = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    console = Console(file=raw, force_terminal=True)
    assert Terminal(console, console).glyphs("…ab · ██") == "...ab - ##"
    assert a_terminal()[0].glyphs("…ab · ██") == "…ab · ██"
