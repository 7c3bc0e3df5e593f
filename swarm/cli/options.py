"""Options that several commands share, each with its help."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields
from typing import Annotated, Any, Final, TypeVar, get_type_hints

import typer

from swarm.cli.logs import show_logs, show_logs_as_json
from swarm.cli.sources import origins_of

T = TypeVar("T")

NETWORK: Final = "Where"
ANSWER: Final = "The answer"
OUTPUT: Final = "Output"
# The field of that name in a dataclass of options.
ORIGINS: Final = "origins"
# What a node listens on by itself.
EVERYWHERE: Final = "/ip4/0.0.0.0/udp/0/quic-v1"


def readable(argument: str) -> str:
    """An argument as text: bytes that are no UTF-8 become question marks, as they do in what is typed."""
    return argument.encode(errors="surrogateescape").decode(errors="replace")


def _set_verbosity(level: int) -> int:
    show_logs(level)
    return level


def _log_as_json(wanted: bool) -> bool:
    if wanted:
        show_logs_as_json()
    return wanted


Verbose = Annotated[
    int,
    typer.Option(
        "--verbose",
        "-v",
        count=True,
        callback=_set_verbosity,
        help="Say what happens; -vv with tracebacks.",
        show_default=False,
        rich_help_panel=OUTPUT,
    ),
]
Join = Annotated[
    list[str] | None,
    typer.Option(
        "--join",
        "-j",
        metavar="ADDRESS",
        help="A node of the swarm; can be repeated. Default: $SWARM_JOIN, else the swarm entered last.",
        show_default=False,
        rich_help_panel=NETWORK,
    ),
]
Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        metavar="NAME|FOLDER",
        help="Which model, where the swarm serves several: its name or the first digits of its digest. The folder "
        "of a checkpoint, or a GGUF file, makes this a full client, which runs both ends of the model itself.",
        show_default=False,
        rich_help_panel=NETWORK,
    ),
]
Wait = Annotated[
    float,
    typer.Option(
        "--wait",
        metavar="SECONDS",
        min=0,
        help="How long to wait for layers that nobody serves.",
        rich_help_panel=NETWORK,
    ),
]
Weights = Annotated[
    str | None,
    typer.Option(
        "--weights",
        metavar="DIGEST|new",
        help="The digest of the model's weights, at least 32 digits: nodes with others are left out. Default: those "
        "used before, else those that most serve; new forgets what was used.",
        show_default=False,
        rich_help_panel=NETWORK,
    ),
]
NoReuse = Annotated[
    bool,
    typer.Option(
        "--no-reuse",
        help="Nodes compute everything anew, and keep nothing of it for others who ask the same.",
        rich_help_panel=NETWORK,
    ),
]
Precision = Annotated[
    str,
    typer.Option(
        "--precision",
        metavar="any|exact|LIST",
        help="What nodes may compute in: exact is without quantised weights; a list is as int8/1,f32, or int8 for "
        "all its versions. One with a version, alone, makes the answer the same whoever computes it.",
        rich_help_panel=NETWORK,
    ),
]
JsonLines = Annotated[
    bool, typer.Option("--json", help="One JSON object for each event.", rich_help_panel=OUTPUT)
]
LogJson = Annotated[
    bool,
    typer.Option(
        "--log-json",
        callback=_log_as_json,
        help="One JSON object for each event, and for each line of the log on standard error.",
        rich_help_panel=OUTPUT,
    ),
]
# For whoever starts this and must not leave it behind.
StopOnEof = Annotated[bool, typer.Option("--stop-on-eof", hidden=True)]
Json = Annotated[bool, typer.Option("--json", help="One JSON object.", rich_help_panel=OUTPUT)]


@dataclass(frozen=True, slots=True)
class Where:
    """Which swarm and which of its models."""

    join: tuple[str, ...]
    model: str | None = None
    wait_s: float = 0.0
    weights: str | None = None
    precision: str = "any"
    reuse: bool = True


def taking(options: type[T], command: Callable[[T], None]) -> Callable[..., None]:
    """A command as typer wants it, with an option for each field of the dataclass that `command` takes.

    A field `origins` is no option: it tells where the others came from.
    """

    def run(context: typer.Context | None = None, **given: Any) -> None:
        if context is not None:
            given[ORIGINS] = origins_of(context)
        command(options(**given))

    hints = get_type_hints(options, include_extras=True)
    hints[ORIGINS] = typer.Context
    parameters = [
        inspect.Parameter(
            "context" if field.name == ORIGINS else field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if field.default is MISSING else field.default,
            annotation=hints[field.name],
        )
        for field in fields(options)  # type: ignore[arg-type]  # a dataclass, which no type variable can say
    ]
    run.__name__, run.__doc__ = command.__name__.lstrip("_"), command.__doc__
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return run
