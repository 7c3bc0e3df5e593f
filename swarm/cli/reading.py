"""Which way of reading suits both ends of the terminal, if there is one."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from swarm.cli.lines import Bare, Lines, Piped
from swarm.cli.screen import Screen


@contextmanager
def open_lines(screen: Screen, commands: Sequence[str]) -> Iterator[Lines]:
    """What somebody says, from now on; the terminal is afterwards as it was."""
    out = screen.terminal.out
    if not sys.stdin.isatty():
        yield Piped()
    elif not out.is_terminal or out.is_dumb_terminal or not os.isatty(1):
        yield Bare()
    else:
        from swarm.cli.editor import edited  # here, for no other command needs what it loads

        with edited(screen, commands) as editor:
            yield editor
