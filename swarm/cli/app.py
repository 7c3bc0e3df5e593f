"""The commands together, and how a run of any of them ends."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from importlib import import_module, metadata
from typing import Annotated, Final

import typer

from protocol.errors import ConfigError, SwarmError, leaves, unwrapped
from swarm.cli.completion import VARIABLE, asked_by_shell
from swarm.cli.logs import traceback_lines, wants_tracebacks
from swarm.cli.options import Verbose
from swarm.cli.schema import TABLES
from swarm.cli.sources import configured
from swarm.cli.streams import OutputLost, own_streams
from swarm.cli.terminal import open_terminal

# Each is a function in the module of its name.
COMMANDS: Final = (
    "chat",
    "completion",
    "config",
    "demo",
    "doctor",
    "generate",
    "models",
    "node",
    "plan",
    "route",
    "serve",
    "status",
    "up",
)


def app_of(*commands: str, names: Iterable[str] = ()) -> typer.Typer:
    """The command line with these commands, the modules of no others imported: a node holds nothing of a client.

    Of those in `names` only that they are there is known.
    """
    app = typer.Typer(
        name="swarm",
        add_completion=False,
        no_args_is_help=True,
        rich_markup_mode="markdown",
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["--help", "-h"]},
    )
    app.callback()(swarm)
    for name in commands:
        command = getattr(import_module(f"swarm.cli.{name}"), name)
        app.command()(configured(name, command) if name in TABLES else command)
    for name in names:
        app.command(name)(_named)
    return app


def _named() -> None:
    pass


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"inference-swarm {metadata.version('inference-swarm')}")
        raise typer.Exit


def swarm(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
    verbose: Verbose = 0,
) -> None:
    """Run large language models together: every node serves some layers, anyone chats with the whole model.

    Try it on this machine:

    ```
    swarm demo
    swarm up
    ```

    Two machines, and a chat from any third (the first node prints its ADDRESS). The second has the weights of its
    layers from the first, unless it is given the model too:

    ```
    swarm node --model MODEL --layers 0:16
    swarm node --layers 16:32 --join ADDRESS
    swarm chat --join ADDRESS
    ```
    """


def main() -> int:
    """Run the command line; the exit status.

    0 done, 1 it failed, 2 it was asked for what cannot be, 130 Ctrl-C, 141 whoever read standard output has left.
    Errors are one line on standard error.
    """
    with own_streams():
        try:
            status = _run()
            sys.stdout.flush()  # what does not arrive has not been done
        except (Exception, BaseExceptionGroup, KeyboardInterrupt) as error:  # noqa: BLE001 - all are told
            return _tell(error)
        return status


def _run() -> int:
    typed = asked_by_shell(COMMANDS) if VARIABLE in os.environ else None
    if typed is not None:
        names = [name for name in COMMANDS if name not in typed]
        return _status(app_of(*typed, names=names))
    # What is no command, or comes after an option of the whole, is told with all of them.
    asked = [word for word in sys.argv[1:2] if word in COMMANDS]
    return _status(app_of(*(asked or COMMANDS)))


def _status(app: typer.Typer) -> int:
    try:
        app(prog_name="swarm")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 1
    return 0


def _tell(raised: BaseException) -> int:
    """Say in one line what went wrong; its traceback is one option away."""
    terminal, error = open_terminal(), _bare(raised)
    match error:
        case KeyboardInterrupt():
            return 130
        case OutputLost(reader_left=True):
            return 141
        case OutputLost() | SwarmError():
            terminal.fail(str(error))
        case _:
            what = f"a bug of ours: {type(error).__name__}: {error}"
            terminal.fail(f"{what} (swarm -vv shows the traceback)")
    notes = traceback_lines(raised) if wants_tracebacks() else getattr(error, "__notes__", ())
    terminal.explain(notes)
    return 2 if isinstance(error, ConfigError) else 1


def _bare(raised: BaseException) -> BaseException:
    """The one error that nurseries have wrapped; what ends a command anyway, if that is among several."""
    if isinstance(raised, BaseExceptionGroup):
        for kind in (KeyboardInterrupt, OutputLost):
            if (found := raised.subgroup(kind)) is not None:
                return next(iter(leaves(found)))
    return unwrapped(raised)
