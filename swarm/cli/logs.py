"""What the programme notes while it runs, shown on standard error: never more lines than it wrote."""

from __future__ import annotations

import logging
import traceback
from typing import Final

from rich.logging import RichHandler

from protocol.plain import one_line
from swarm.cli.terminal import open_terminal

_OURS: Final = ("protocol", "node", "swarm")


class PlainFormatter(logging.Formatter):
    """A record is one line, whoever had a part in it; a traceback stands indented under it."""

    def format(self, record: logging.LogRecord) -> str:
        lines = [one_line(record.getMessage())]
        if record.exc_info and record.exc_info[1] is not None:
            lines += traceback_lines(record.exc_info[1])
        return "\n".join(lines)


def traceback_lines(error: BaseException) -> list[str]:
    """The traceback, for a person to read; no line of it can be taken for another message."""
    return [f"  {one_line(line)}" for line in "".join(traceback.format_exception(error)).splitlines() if line]


def show_logs(verbosity: int) -> None:
    """0 shows warnings, 1 what happens, 2 everything."""
    handler = RichHandler(console=open_terminal().err, show_path=False)
    handler.setFormatter(PlainFormatter())
    logging.basicConfig(level=logging.WARNING, handlers=[handler])  # does nothing the second time
    if verbosity:
        for name in _OURS:
            logging.getLogger(name).setLevel(logging.INFO if verbosity == 1 else logging.DEBUG)


def wants_tracebacks() -> bool:
    """Whether everything is shown."""
    return logging.getLogger("swarm").isEnabledFor(logging.DEBUG)
