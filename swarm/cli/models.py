"""`swarm models`: what is kept of models on this machine, and removing it."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from protocol.errors import ConfigError
from protocol.plain import one_line
from swarm.cli import local
from swarm.cli.options import Json, Verbose
from swarm.cli.terminal import Terminal, open_terminal
from swarm.cli.words import count, describe_size

_DAY_S = 86_400


def models(
    action: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="rm NAME",
            help="rm removes models, by name or by the first digits of their digests. Default: list them.",
            show_default=False,
        ),
    ] = None,
    cache_dir: Annotated[
        Path | None,
        typer.Option(help="Where `swarm node` was told to keep what it fetches.", show_default=False),
    ] = None,
    as_json: Json = False,
    verbose: Verbose = 0,
) -> None:
    """Show which models from peers are kept on this machine, and remove them.

    Weights that a node has fetched stay for its next start, and for other nodes here. What the hub gave is not among
    them, nor checkpoints of your own.

    ```
    swarm models --json
    swarm models rm tiny
    ```
    """
    folder = str(cache_dir) if cache_dir else None
    match action or []:
        case []:
            _list(local.models(folder), as_json)
        case ["rm", first, *others]:
            for name in (first, *others):
                removed = local.remove_model(name, folder)
                _tell(removed, as_json)
        case ["rm"]:
            raise ConfigError("rm needs the name of a model: `swarm models` lists them")
        case [word, *_]:
            raise ConfigError(
                f"{word!r} is nothing that models can be told: use rm NAME, or nothing to list them"
            )


def _list(found: Sequence[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        print(json.dumps({"models": list(found)}))
        return
    terminal = open_terminal()
    if not found:
        terminal.show(Text("no model from peers is kept here"))
        return
    terminal.show(table(found, time.time(), terminal))


def table(found: Sequence[dict[str, Any]], now: float, terminal: Terminal) -> Table:
    """A line for each model; `now` in seconds since the Unix epoch."""
    shown = Table(box=None, padding=(0, 1), show_edge=False, header_style="dim")
    for header in ("model", "digest", "weights of", "size", "used"):
        shown.add_column(header, no_wrap=True, justify="right" if header == "size" else "left")
    for model in found:
        used = "now" if model["in_use"] else _ago(now - model["used_at"])
        stages = count(model["stages"], "stage")
        name = terminal.glyphs(one_line(model["name"]))
        shown.add_row(name, model["digest"][:12], stages, describe_size(model["size"]), used)
    return shown


def _tell(removed: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps({"removed": removed}))
        return
    terminal = open_terminal()
    line = f"removed {removed['name']} ({removed['digest'][:12]}), {describe_size(removed['size'])}"
    terminal.show(Text(terminal.glyphs(one_line(line))))


def _ago(seconds: float) -> str:
    days = int(max(0.0, seconds) // _DAY_S)
    return "today" if days == 0 else f"{count(days, 'day')} ago"
