"""`swarm plan`: what a model takes, before anything of it is fetched or loaded."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.table import Table
from rich.text import Text

from protocol.errors import ConfigError
from protocol.plain import one_line
from swarm.cli import local
from swarm.cli.node_options import parse_size
from swarm.cli.options import Json, Verbose
from swarm.cli.terminal import Terminal, open_terminal
from swarm.cli.words import count, describe_size

_PRECISIONS: Final = ("f32", "bf16", "int8", "int4")
_MOST_MEMORIES: Final = 16


def plan(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", help="A checkpoint's folder, a GGUF file, org/name of the hub, or a config.json."
        ),
    ],
    memory: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SIZE",
            help="What is free on each machine, as 16G; can be repeated. Default: what is free on this one.",
            show_default=False,
        ),
    ] = None,
    cache_dir: Annotated[
        Path | None, typer.Option(help="Where files of the hub are kept.", show_default=False)
    ] = None,
    as_json: Json = False,
    verbose: Verbose = 0,
) -> None:
    """Show what a model takes in each precision, how many machines it needs, and what this one could serve.

    No weights are fetched or loaded.

    ```
    swarm plan Qwen/QwQ-32B
    swarm plan --memory 16G --memory 64G ./config.json
    ```
    """
    memories = [size for text in memory or () if (size := parse_size(text)) is not None]
    if len(memories) > _MOST_MEMORIES or not all(memories):
        raise ConfigError(f"give at most {_MOST_MEMORIES} sizes of memory, each more than nothing")
    found = local.plan(model, memories, str(cache_dir) if cache_dir else None)
    if as_json:
        print(json.dumps(found))
        return
    terminal = open_terminal()
    terminal.show(plan_table(found, terminal), *advice(found, terminal))


def plan_table(found: Mapping[str, Any], terminal: Terminal) -> Table:
    """Sizes by stage and precision, and machines by precision; `found` is of `node.advice.advise`."""
    parts = (
        found["model"],
        found["type"],
        count(found["layers"], "layer"),
        f"stored in {found['stored_in']}",
    )
    title = terminal.glyphs(one_line(" · ".join(map(str, parts))))
    table = Table(
        box=None, padding=(0, 1), show_edge=False, header_style="dim", title=title, title_justify="left"
    )
    table.add_column("")
    for header in ("stored", *_PRECISIONS):
        table.add_column(header, no_wrap=True, justify="right")
    for stage in found["stages"]:
        table.add_row(_stage(stage), *_sizes(stage["bytes"]))
    table.add_row("the whole model", *_sizes(found["total"]), style="bold", end_section=True)
    table.add_row("1,000 tokens of KV", *_sizes(found["kv_1000_tokens"]))
    for machines in found["machines"]:
        counts = [machines["count"][name] for name in _PRECISIONS]
        words = ["none" if number is None else f"{number:,}" for number in counts]
        table.add_row(f"machines with {describe_size(machines['memory'])} free", "", *words)
    return table


def advice(found: Mapping[str, Any], terminal: Terminal) -> list[Text]:
    """Lines about this machine: what it could serve, and by which command."""
    here = found["here"]
    free, weights = describe_size(here["free"]), describe_size(here["for_weights"])
    lines = [Text(), Text(terminal.glyphs(f"this machine has {free} free, of it {weights} for weights"))]
    if found["refused"]:
        return [*lines, Text(terminal.glyphs(one_line(found["refused"])), style="yellow")]
    for name, serves in here["serves"].items():
        if serves is None:
            lines.append(Text(f"  {name:<5} not one layer fits", style="dim"))
            continue
        first, stop = serves["layers"]
        room = f"{count(stop - first, 'layer')}, room for {serves['tokens']:,} tokens: "
        line = Text.assemble(f"  {name:<5} {room}", (one_line(serves["command"]), "bold"))
        lines.append(line)
    return lines


def _stage(stage: Mapping[str, Any]) -> str:
    layers = stage["layers"]
    if layers is None:
        return str(stage["stage"])
    first, stop = layers
    return f"layer {first}" if stop == first + 1 else f"each of layers {first}:{stop}"


def _sizes(sizes: Mapping[str, int | None]) -> list[str]:
    return [describe_size(sizes.get(name)) for name in ("stored", *_PRECISIONS)]
