"""What the programme notes while it runs, shown on standard error: never more lines than it wrote.

No prompt and no answer is ever noted, at no level.
"""

from __future__ import annotations

import json
import logging
import traceback
from typing import Any, Final

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


class JsonFormatter(logging.Formatter):
    """A record is an object on one line: time (seconds since the Unix epoch), level, logger, message, traceback."""

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, Any] = {
            "time": round(record.created, 3),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": one_line(record.getMessage()),
        }
        if record.exc_info and record.exc_info[1] is not None:
            fields["traceback"] = [line.strip() for line in traceback_lines(record.exc_info[1])]
        return json.dumps(fields)


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


def show_logs_as_json() -> None:
    """The same, for programs: instead of the lines for people, if those are shown."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)


def wants_tracebacks() -> bool:
    """Whether everything is shown."""
    return logging.getLogger("swarm").isEnabledFor(logging.DEBUG)
