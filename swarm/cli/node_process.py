"""Commands of ours as processes of their own, for whoever starts them: the command line, and what it tells."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


def node_command(
    model: Path | str | None,
    layers: str | None,
    *,
    home: Path,
    listen: str,
    join: Sequence[str] = (),
    options: Sequence[str] = (),
) -> list[str]:
    """The words of a command that tells `Told`s."""
    words = [sys.executable, "-m", "swarm", "node", "--json", "--home", str(home), "--listen", listen]
    if model is not None:
        words += ["--model", str(model)]
    if layers is not None:
        words += ["--layers", layers]
    for addr in join:
        words += ["--join", addr]
    return [*words, *options]


def serve_command(join: Sequence[str], options: Sequence[str] = ()) -> list[str]:
    """The words of a command that serves an API and tells `Told`s."""
    words = [sys.executable, "-m", "swarm", "serve", "--json", "--stop-on-eof", *options]
    for addr in join:
        words += ["--join", addr]
    return words


@dataclass(frozen=True, slots=True)
class Told:
    """An event of a node: its name, the line for people, and all its fields, as `node/events.py` has them."""

    name: str
    text: str
    fields: Mapping[str, Any]


def told(line: str) -> Told | None:
    """The event in a line that a node wrote; None where it is another line: an error, a record of the log."""
    try:
        match json.loads(line):
            case {"event": str(name), "text": str(text)} as fields:
                return Told(name, text, fields)
    except (ValueError, RecursionError):
        pass
    return None
