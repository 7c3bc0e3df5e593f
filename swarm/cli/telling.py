"""What a command that goes on tells as it does: a line for people, or an object for programs, on standard output."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from functools import partial
from typing import Any, Final

from rich.text import Text

from protocol.plain import one_line
from swarm.cli.node_process import Told
from swarm.cli.terminal import Terminal, open_terminal

Tell = Callable[[Told], None]

_STYLES: Final = {
    "ready": "bold green",
    "address": "dim",
    "warned": "yellow",
    "noted": "yellow",
    "lost": "yellow",
}


def teller(as_json: bool) -> Tell:
    """How to tell it."""
    return _show_json if as_json else partial(_show_line, terminal=open_terminal())


def relay(name: str, line: str) -> None:
    """What a process beside this one has written that is no event, on standard error: of which, unless it is JSON."""
    said = line if line.startswith("{") else f"{name}: {line.lstrip()}"
    open_terminal().err.print(Text(one_line(said)), soft_wrap=True)


def event(name: str, text: str, **fields: Any) -> Told:
    """Something to tell."""
    return Told(name, text, {"event": name, **fields, "text": text})


def _show_line(said: Told, terminal: Terminal) -> None:
    line = Text(terminal.glyphs(said.text), style=_STYLES.get(said.name, ""))
    terminal.out.print(line, soft_wrap=True)


def _show_json(said: Told) -> None:
    print(json.dumps(said.fields))
    sys.stdout.flush()
