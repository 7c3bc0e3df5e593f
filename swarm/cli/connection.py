"""Entering a swarm from a command: through which door, with what to show meanwhile, and keeping the door."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from rich.text import Text

from protocol.errors import NoRoute, SwarmError
from protocol.plain import one_line, plain
from swarm import blocking
from swarm.branches import Model
from swarm.cli import joined, local
from swarm.cli.options import Where
from swarm.cli.terminal import Terminal
from swarm.events import OnEvent


@contextmanager
def open_client(where: Where, terminal: Terminal, on_event: OnEvent) -> Iterator[blocking.Client]:
    """A client in the swarm; its doors are kept for the next command.

    Raises: ConfigError, Unreachable, NoRoute.
    """
    doors = joined.find_doors(where.join)
    how: dict[str, Any] = {
        "model": where.model,
        "wait_s": where.wait_s,
        "weights": where.weights,
        "precision": where.precision,
        "reuse": where.reuse,
        "on_event": on_event,
    }
    if where.model is not None and _is_checkpoint(where.model):
        with working(terminal, f"loading both ends of {where.model}"):
            how |= {"model": None, "ends": local.load_ends(where.model)}
    with ExitStack() as stack:
        with doors.knocking(), working(terminal, "entering the swarm"):
            client = stack.enter_context(blocking.connect(*doors.addrs, **how))
        joined.remember(doors.addrs, joined.places(client.book))
        try:
            yield client
        except NoRoute as error:
            raise NoRoute(copyable(error, client), error.missing) from error


@contextmanager
def open_beside(
    client: blocking.Client, where: Where, name: str | None, terminal: Terminal
) -> Iterator[Model | None]:
    """Another model: a checkpoint on this machine, or by its name one of the same swarm; None, where none is named.

    Raises: ConfigError, BadCheckpoint, UnsupportedModel, Unreachable, NoRoute.
    """
    if name is None:
        yield None
        return
    if _is_checkpoint(name):
        with working(terminal, f"loading {name}"):
            whole = local.load_whole(name)
        yield whole
        return
    doors = joined.find_doors(where.join)
    with ExitStack() as stack:
        with doors.knocking(), working(terminal, f"looking for {name}"):
            other = stack.enter_context(
                client.beside(
                    *doors.addrs,
                    model=name,
                    wait_s=where.wait_s,
                    precision=where.precision,
                    reuse=where.reuse,
                )
            )
        yield other


def copyable(error: SwarmError, client: blocking.Client) -> str:
    """The error with commands that can be copied: this model and a node's address in place of the words for them."""
    text = str(error).replace("--model MODEL ", f"--model {shlex.quote(plain(client.model.name))} ")
    return text.replace("--join ADDRESS", f"--join {shlex.quote(a_door(client))}")


def a_door(client: blocking.Client) -> str:
    """For a command: where a node of this model was met; what is only announced may be anybody's place."""
    said = (a for a in client.nodes if a.digest == client.model.digest)
    return next((addr for a in said for addr in client.book.proven(a.peer)), "ADDRESS")


def working(terminal: Terminal, what: str) -> AbstractContextManager[object]:
    """Shows a person, while it is entered, that something goes on."""
    if not terminal.err.is_terminal:
        return nullcontext()
    return terminal.err.status(
        Text(one_line(what), style="dim"), spinner="dots" if "utf" in terminal.err.encoding else "line"
    )


def _is_checkpoint(model: str) -> bool:
    """Whether this is no name: a folder, or a GGUF file."""
    path = Path(model)
    return path.is_dir() or (path.suffix.lower() == ".gguf" and path.is_file())
