"""The options of `swarm up`, and which nodes they mean."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from protocol.errors import ConfigError
from swarm.cli import local
from swarm.cli.api_options import ApiOptions
from swarm.cli.demo_layout import AUTO, Layout, Weights, choose_layout
from swarm.cli.demo_nodes import shipped_model, thread_options
from swarm.cli.local_nodes import Task
from swarm.cli.node_options import parse_size
from swarm.cli.options import EVERYWHERE, NETWORK, OUTPUT, JsonLines, LogJson, Verbose


@dataclass(frozen=True, slots=True)
class _Nodes:
    """What is to run."""

    model: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL",
            help="A checkpoint's folder, a GGUF file, or org/name of the hub. Default: the model that ships; with "
            "--join that of the swarm.",
            show_default=False,
        ),
    ] = None
    join: Annotated[
        list[str] | None,
        typer.Option(
            "--join",
            "-j",
            metavar="ADDRESS",
            help="A node of a swarm to take part in; can be repeated. Default: $SWARM_JOIN, else a new one begins.",
            show_default=False,
            rich_help_panel=NETWORK,
        ),
    ] = None
    listen: Annotated[
        str,
        typer.Option(
            metavar="ADDRESS",
            help="Where the first node listens; the others take free ports beside it.",
            rich_help_panel=NETWORK,
        ),
    ] = EVERYWHERE
    nodes: Annotated[int, typer.Option(min=1, max=16, help="How many node processes share the layers.")] = 1
    quant: Annotated[
        str,
        typer.Option(
            metavar="none|int8|int4|auto",
            help="What the weights are kept in. auto: the most precise that fits.",
        ),
    ] = AUTO
    max_memory: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="For weights and KV caches of all nodes together, as 6G. Default: by the free memory.",
            show_default=False,
        ),
    ] = None
    home: Annotated[
        Path | None,
        typer.Option(help="Where the nodes' keys are kept, by which others know them.", show_default=False),
    ] = None
    metrics: Annotated[
        str | None,
        typer.Option(
            metavar="[ADDRESS:]PORT",
            help="Where Prometheus may ask for the first node's numbers; the others have those after it. The "
            "API has its own at /metrics.",
            show_default=False,
            rich_help_panel=OUTPUT,
        ),
    ] = None
    as_json: JsonLines = False
    log_json: LogJson = False
    verbose: Verbose = 0


@dataclass(frozen=True, slots=True)
class UpOptions(ApiOptions, _Nodes):
    """As they are typed; see `swarm.cli.options.taking`."""

    @property
    def doors(self) -> tuple[str, ...]:
        """Nodes elsewhere to join."""
        return tuple(self.join or ())

    @property
    def folder(self) -> Path:
        """Where the nodes' folders are."""
        return (self.home or Path("~/.inference-swarm")).expanduser()

    def check(self) -> None:
        """Raises: ConfigError."""
        if self.doors and self.nodes > 1:
            raise ConfigError("one node joins a swarm: leave out --nodes, or --join")
        parse_size(self.max_memory)
        self.metrics_of(0)

    def metrics_of(self, number: int) -> list[str]:
        """The option of the node of this number, counted from 0. Raises: ConfigError."""
        if self.metrics is None:
            return []
        host, colon, port = self.metrics.rpartition(":")
        if not (port.isascii() and port.isdigit()):
            raise ConfigError(f"metrics {self.metrics!r}: give a port, as 9464, or an address and a port")
        chosen = int(port) + number if int(port) else 0  # 0: each takes a free one
        return ["--metrics", f"{host}{colon}{chosen}"]


@dataclass(frozen=True, slots=True)
class Plan:
    """What the nodes are to do, and a line about it."""

    tasks: tuple[Task, ...]
    line: str
    whole: bool  # every layer is served here


def plan(options: UpOptions) -> Plan:
    """Which node serves what: each as much as there is memory for.

    All on one node if it fits; what does not fit is for other machines. Raises: ConfigError, BadCheckpoint,
    UnsupportedModel.
    """
    quant = () if options.quant == "none" else ("--quant", options.quant)
    most = () if options.max_memory is None else ("--max-memory", options.max_memory)
    if options.doors:
        return Plan((Task(options.model, None, (*quant, *most)),), "a node for what the swarm lacks", False)
    model = options.model or str(shipped_model())
    weights = local.weights(model)
    if (memory := parse_size(options.max_memory)) is not None:
        weights = weights.within(memory)
    try:
        layout = choose_layout(weights, options.nodes, options.quant)
    except ConfigError as error:
        if options.nodes > 1 or options.quant not in (AUTO, *weights.stages):
            raise
        return Plan((Task(model, None, (*quant, *most)),), f"{error}; it serves the layers that fit", False)
    return _split(model, weights, layout, most)


def _split(model: str, weights: Weights, layout: Layout, most: tuple[str, ...]) -> Plan:
    quant = () if layout.quant == "none" else ("--quant", layout.quant)
    count = len(layout.layers)
    tasks = []
    for layers in layout.layers:
        options = (*quant, *most)
        if count > 1:
            # Beside its weights each has its part of what is left for sessions.
            bytes_ = weights.needs(layout.quant, [layers]) + weights.room_bytes // (2 * count)
            options = (*quant, *thread_options(count), "--max-memory", str(bytes_))
        tasks.append(Task(model, layers, options))
    kept = "" if layout.quant == "none" else f" in {layout.quant}"
    twice = "; every layer twice, so that any node may die" if layout.spared else ""
    named = "the model that ships" if model == str(shipped_model()) else shlex.quote(weights.name)
    line = f"{named}{kept}, {weights.blocks} layers on {count} node{'s' * (count > 1)}{twice}"
    return Plan(tuple(tasks), line, True)
