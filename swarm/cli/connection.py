"""Entering a swarm from a command: through which door, with what to show meanwhile, and keeping the door."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from protocol.errors import NoRoute, SwarmError
from swarm import blocking
from swarm.cli import joined, local
from swarm.cli.options import Where
from swarm.cli.terminal import Terminal, harmless
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
        "on_event": on_event,
    }
    if where.model is not None and Path(where.model).is_dir():
        with working(terminal, f"loading both ends of {where.model}"):
            how |= {"model": None, "ends": local.load_ends(where.model)}
    with ExitStack() as stack:
        with doors.knocking(), working(terminal, "entering the swarm"):
            client = stack.enter_context(blocking.connect(*doors.addrs, **how))
        others = (addr for said in client.nodes for addr in said.addrs[:1])
        joined.remember(doors.addrs, others)
        try:
            yield client
        except NoRoute as error:
            raise NoRoute(copyable(error, client), error.missing) from error


def copyable(error: SwarmError, client: blocking.Client) -> str:
    """The error with commands that can be copied: this model and a node's address in place of the words for them."""
    said = (a for a in client.nodes if a.digest == client.model.digest)
    door = next((addr for a in said for addr in a.addrs[:1]), "ADDRESS")
    text = str(error).replace("--model MODEL ", f"--model {shlex.quote(harmless(client.model.name))} ")
    return text.replace("--join ADDRESS", f"--join {door}")


def working(terminal: Terminal, what: str) -> AbstractContextManager[object]:
    """Shows a person, while it is entered, that something goes on."""
    if not terminal.err.is_terminal:
        return nullcontext()
    return terminal.err.status(
        f"[dim]{what}[/]", spinner="dots" if "utf" in terminal.err.encoding else "line"
    )
