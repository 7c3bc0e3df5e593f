"""`swarm serve`: an OpenAI-compatible API over a swarm."""

from __future__ import annotations

import importlib.util
import os
import signal
import threading
from concurrent.futures import CancelledError
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer
from rich.text import Text

from protocol.errors import ConfigError
from protocol.files import read_small
from swarm import entry
from swarm.cli import joined
from swarm.cli.options import Join, Model, NoReuse, Precision, Verbose, Wait, Weights, taking
from swarm.cli.terminal import Terminal, open_terminal
from swarm.portal import Portal

if TYPE_CHECKING:
    from swarm.http.settings import Settings

API: Final = "The API"
_INSTALL: Final = 'pip install "inference-swarm[http]"'
_KEY_FILE_BYTES: Final = 64 * 1024

Host = Annotated[str, typer.Option("--host", metavar="ADDRESS", help="Where to listen.", rich_help_panel=API)]
Port = Annotated[
    int, typer.Option("--port", "-p", min=0, max=65535, help="0 takes a free one.", rich_help_panel=API)
]
KeyFile = Annotated[
    Path | None,
    typer.Option(
        "--key-file",
        metavar="FILE",
        help="Keys that may ask, one a line. Default: $SWARM_API_KEY, else everybody on this machine.",
        show_default=False,
        rich_help_panel=API,
    ),
]
NoKey = Annotated[
    bool,
    typer.Option("--no-key", help="Everybody who reaches the address may ask.", rich_help_panel=API),
]
AllowHost = Annotated[
    list[str] | None,
    typer.Option(
        "--allow-host",
        metavar="NAME",
        help="A name under which this is reached; can be repeated.",
        show_default=False,
        rich_help_panel=API,
    ),
]
AllowOrigin = Annotated[
    list[str] | None,
    typer.Option(
        "--allow-origin",
        metavar="ORIGIN",
        help="A site whose pages may ask, as https://chat.example; can be repeated.",
        show_default=False,
        rich_help_panel=API,
    ),
]


Parallel = Annotated[
    int, typer.Option(min=1, max=64, help="Answers that are computed at once.", rich_help_panel=API)
]
Queue = Annotated[
    int,
    typer.Option(min=0, max=1024, help="Requests that wait; who comes then gets 429.", rich_help_panel=API),
]


@dataclass(frozen=True, slots=True)
class ServeOptions:
    """What `swarm serve` takes."""

    join: Join = None
    model: Model = None
    weights: Weights = None
    precision: Precision = "any"
    wait: Wait = 0.0
    no_reuse: NoReuse = False
    host: Host = "127.0.0.1"
    port: Port = 8080
    key_file: KeyFile = None
    no_key: NoKey = False
    parallel: Parallel = 16
    queue: Queue = 32
    allow_host: AllowHost = None
    allow_origin: AllowOrigin = None
    verbose: Verbose = 0


def _serve(options: ServeOptions) -> None:
    """Serve a swarm to programs that speak OpenAI's API.

    It listens at once, on this machine only, and answers as soon as it is in the swarm. Others reach it with --host
    and a key.

    ```
    swarm serve --join ADDRESS
    curl http://127.0.0.1:8080/v1/chat/completions -H 'Content-Type: application/json' -d \\
      '{"messages": [{"role": "user", "content": "What is 12 + 30?"}]}'
    SWARM_API_KEY=$(openssl rand -hex 32) swarm serve --host 0.0.0.0
    ```
    """
    _require()
    from swarm.http.serve import serve as serving

    settings = _settings(options)
    doors = joined.find_doors(options.join or ())
    enter = partial(
        entry.connect,
        *doors.addrs,
        model=options.model,
        wait_s=options.wait,
        weights=options.weights,
        precision=options.precision,
        reuse=not options.no_reuse,
    )
    terminal, leave = open_terminal(), threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: leave.set())
    with Portal() as portal, serving(portal, lambda tell: enter(on_event=tell), settings) as found:
        found.ended.add_done_callback(lambda _: leave.set())
        found.service.place.on_entered = lambda client: joined.remember(
            doors.addrs, joined.places(client.book)
        )
        _say(terminal, found.url, settings)
        leave.wait()
        if found.ended.done():
            with suppress(CancelledError):
                found.ended.result()


# A function with the name of the command.
serve = taking(ServeOptions, _serve)


def _say(terminal: Terminal, url: str, settings: Settings) -> None:
    key = "" if settings.keys else " (no key needed)"
    for line in (f"listening at {url}{key}", f"for OpenAI's clients: base_url={url}/v1"):
        terminal.out.print(Text(line), soft_wrap=True)


def _settings(options: ServeOptions) -> Settings:
    """Raises: ConfigError."""
    from swarm.http.settings import Settings, parse_keys, parse_names

    keys = os.environ.get("SWARM_API_KEY", "")
    if options.key_file is not None:
        try:
            keys = read_small(options.key_file, _KEY_FILE_BYTES).decode()
        except (OSError, ValueError) as error:
            raise ConfigError(f"the key file {options.key_file} cannot be read: {error}") from error
        if not parse_keys(keys):
            raise ConfigError(f"the key file {options.key_file} has no key in it")
    found = parse_keys(keys)
    if found and options.no_key:
        raise ConfigError("--no-key, and there is a key: leave out one of them")
    return Settings(
        options.host,
        options.port,
        found,
        options.no_key,
        parse_names(options.allow_host or ()),
        frozenset(origin.lower().rstrip("/") for origin in options.allow_origin or ()),
        options.parallel,
        options.queue,
    )


def _require() -> None:
    if any(importlib.util.find_spec(name) is None for name in ("fastapi", "uvicorn")):
        raise ConfigError(f"serving an API needs fastapi and uvicorn: {_INSTALL}")
