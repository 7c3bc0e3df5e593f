"""The commands together, and how a run of any of them ends."""

from __future__ import annotations

import os
import sys
from importlib import metadata
from typing import Annotated

import typer

from protocol.errors import ConfigError, SwarmError
from swarm.cli import chat, demo, generate, node, route, status
from swarm.cli.options import Verbose, wants_tracebacks
from swarm.cli.terminal import open_terminal

app = typer.Typer(
    name="swarm",
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["--help", "-h"]},
)
for _command in (chat.chat, demo.demo, generate.generate, node.node, route.route, status.status):
    app.command()(_command)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"inference-swarm {metadata.version('inference-swarm')}")
        raise typer.Exit


@app.callback()
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
    ```

    Two machines, and a chat from any third (the first node prints its ADDRESS):

    ```
    swarm node --model MODEL --layers 0:16
    swarm node --model MODEL --layers 16:32 --join ADDRESS
    swarm chat --join ADDRESS
    ```
    """


def main() -> int:
    """Run the command line; the exit status.

    0 done, 1 it failed, 2 it was asked for what cannot be, 130 Ctrl-C. Errors are one line on standard error.
    """
    try:
        app(prog_name="swarm")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 1
    except BrokenPipeError:
        # Whoever read standard output has closed it; what is buffered has nowhere to go, also at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return 130
    except (Exception, BaseExceptionGroup) as error:  # told in one line; the traceback is one option away
        bare = _bare(error)
        if wants_tracebacks() and not isinstance(bare, KeyboardInterrupt):
            raise
        return _tell(bare)
    return 0


def _tell(error: BaseException) -> int:
    fail = open_terminal().fail
    if isinstance(error, KeyboardInterrupt):
        return 130
    if isinstance(error, ConfigError):
        fail(str(error))
        return 2
    if isinstance(error, SwarmError):
        fail(str(error))
    else:
        fail(f"a bug of ours: {type(error).__name__}: {error} (swarm -vv shows the traceback)")
    return 1


def _bare(error: BaseException) -> BaseException:
    """The one error that nurseries have wrapped; a Ctrl-C, if there is one among several."""
    if isinstance(error, BaseExceptionGroup):
        if error.subgroup(KeyboardInterrupt) is not None:
            return KeyboardInterrupt()
        if len(error.exceptions) == 1:
            return _bare(error.exceptions[0])
    return error
