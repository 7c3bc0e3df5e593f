"""The options of an API: where it listens, who may ask, how much at once. Shared by the commands that offer one."""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from protocol.errors import ConfigError
from protocol.files import read_small

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


@dataclass(frozen=True)  # without slots, so that options can be of two kinds at once
class ApiOptions:
    """As they are typed."""

    host: Host = "127.0.0.1"
    port: Port = 8080
    key_file: KeyFile = None
    no_key: NoKey = False
    parallel: Parallel = 16
    queue: Queue = 32
    allow_host: AllowHost = None
    allow_origin: AllowOrigin = None

    def settings(self) -> Settings:
        """What the API is to be, its keys read. Raises: ConfigError, also where its packages are not installed."""
        if any(importlib.util.find_spec(name) is None for name in ("fastapi", "uvicorn")):
            raise ConfigError(f"serving an API needs fastapi and uvicorn: {_INSTALL}")
        from swarm.http.settings import Settings, parse_names

        found = keys(self.key_file)
        if found and self.no_key:
            raise ConfigError("--no-key, and there is a key: leave out one of them")
        return Settings(
            self.host,
            self.port,
            found,
            self.no_key,
            parse_names(self.allow_host or ()),
            frozenset(origin.lower().rstrip("/") for origin in self.allow_origin or ()),
            self.parallel,
            self.queue,
        )

    def words(self) -> list[str]:
        """The same for the command line of another process, which has the variables of this one."""
        found = ["--host", self.host, "--port", str(self.port)]
        found += ["--parallel", str(self.parallel), "--queue", str(self.queue)]
        found += ["--no-key"] * self.no_key
        found += [] if self.key_file is None else ["--key-file", str(self.key_file)]
        for name in self.allow_host or ():
            found += ["--allow-host", name]
        for origin in self.allow_origin or ():
            found += ["--allow-origin", origin]
        return found


def keys(file: Path | None) -> tuple[str, ...]:
    """The keys that may ask: those of the file, if there is one, else $SWARM_API_KEY. Raises: ConfigError."""
    from swarm.http.settings import parse_keys

    if file is None:
        return parse_keys(os.environ.get("SWARM_API_KEY", ""))
    try:
        found = parse_keys(read_small(file, _KEY_FILE_BYTES).decode())
    except (OSError, ValueError) as error:
        raise ConfigError(f"the key file {file} cannot be read: {error}") from error
    if not found:
        raise ConfigError(f"the key file {file} has no key in it")
    return found
