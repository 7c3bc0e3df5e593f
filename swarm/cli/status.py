"""`swarm status`: who serves what."""

from __future__ import annotations

import json
from contextlib import AsyncExitStack
from typing import Annotated

import trio
import typer
from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from protocol.plain import one_line
from swarm.cli import joined
from swarm.cli.connection import working
from swarm.cli.coverage import render
from swarm.cli.options import OUTPUT, Join, Json, Precision, Verbose
from swarm.cli.survey import Survey, enter
from swarm.cli.terminal import Terminal, open_terminal
from swarm.coverage import by_model, coverage_fields
from swarm.routing.precision import Precisions, parse_precisions

WATCH_EVERY_S = 2.0


def status(
    join: Join = None,
    precision: Precision = "any",
    watch: Annotated[
        bool, typer.Option("--watch", "-w", help="Keep showing; Ctrl-C ends it.", rich_help_panel=OUTPUT)
    ] = False,
    as_json: Json = False,
    verbose: Verbose = 0,
) -> None:
    """Show who serves which layers, and the command that fills each hole.

    ```
    swarm status --join ADDRESS --watch
    swarm status --json | jq '.models[].missing'
    ```
    """
    precisions = parse_precisions(precision)
    doors = joined.find_doors(join or ())
    terminal = open_terminal()
    trio.run(_status, doors, terminal, precisions, as_json, watch)


async def _status(
    doors: joined.Doors, terminal: Terminal, precisions: Precisions, as_json: bool, watch: bool
) -> None:
    addrs = doors.addrs
    async with AsyncExitStack() as stack:
        with doors.knocking(), working(terminal, "entering the swarm"):
            surveyor = await stack.enter_async_context(enter(addrs))
            found = await surveyor.survey()
        joined.remember(addrs, found.doors)
        if complaint := surveyor.complaint():
            terminal.remark(complaint)
        if as_json:
            models = [
                coverage_fields(model, addrs[0])
                for model in by_model(found.announcements, found.rtt_ms, found.weights, precisions)
            ]
            print(json.dumps({"models": models}))
            return
        if not watch:
            terminal.show(*_picture(found, precisions, terminal, addrs[0]))
            return
        with Live(console=terminal.out, auto_refresh=False) as live:
            while True:
                live.update(Group(*_picture(found, precisions, terminal, addrs[0])), refresh=True)
                await trio.sleep(WATCH_EVERY_S)
                found = await surveyor.survey()


def _picture(found: Survey, precisions: Precisions, terminal: Terminal, join: str) -> list[Table | Text]:
    if not found.announcements:
        return [Text("nobody serves a model here yet", style="red")]
    parts: list[Table | Text] = []
    for model in by_model(found.announcements, found.rtt_ms, found.weights, precisions):
        parts += [*([Text()] if parts else []), *render(model, terminal, join)]
        if (dispute := found.disputes.get(model.one.digest)) is not None:
            parts.append(Text(terminal.glyphs(one_line(dispute)), style="yellow"))
    return parts
