"""`swarm config`: which settings hold, where they came from, and a file to begin with."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.table import Table
from rich.text import Text

from protocol.errors import ConfigError
from protocol.files import write_whole
from protocol.plain import one_line
from swarm.cli.answering import AnswerOptions, settled
from swarm.cli.connection import open_client
from swarm.cli.options import ORIGINS, Json, Verbose
from swarm.cli.origins import USUAL, Origins
from swarm.cli.schema import TABLES, Setting, settings_of, shared_settings
from swarm.cli.screen import Screen
from swarm.cli.sources import Found, find_settings, own_file
from swarm.cli.terminal import open_terminal

_ANSWERING: Final = ("chat", "generate")
# Tables that a new file has: what is set once and stays.
_BEGUN_WITH: Final = ("serve", "node")
_EMPTY: Final[Mapping[type, str]] = {list: "[]", int: "0", float: "0.0", bool: "false"}


def config(
    action: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="show [COMMAND] | path | init [FILE]",
            help="show: each setting of a command, chat if none is named, with where it came from; path: where your "
            "own file is, or would be; init: write one, in which all is commented out. Default: show.",
            show_default=False,
        ),
    ] = None,
    file: Annotated[
        str | None,
        typer.Option(
            "--config",
            metavar="FILE|none",
            help="As the command would be told it. Default: $SWARM_CONFIG, else ./swarm.toml and your own.",
            show_default=False,
        ),
    ] = None,
    ask: Annotated[
        bool, typer.Option("--ask", help="Enter the swarm, and show what the model suggests as well.")
    ] = False,
    as_json: Json = False,
    verbose: Verbose = 0,
) -> None:
    """Show which settings hold and where each came from.

    What is typed counts most, then the environment (SWARM_TEMPERATURE), ./swarm.toml, your own swarm.toml, what the
    model suggests, and what is usual.

    ```
    swarm config --ask
    swarm config show serve --json
    swarm config init
    ```
    """
    match action or ["show"]:
        case ["show"]:
            _show("chat", file, ask=ask, as_json=as_json)
        case ["show", command]:
            _show(command, file, ask=ask, as_json=as_json)
        case ["path"]:
            open_terminal().show(Text(str(own_file())))
        case ["init"]:
            _init(own_file())
        case ["init", path]:
            _init(Path(path))
        case words:
            raise ConfigError(f"{' '.join(words)!r}: it is show [COMMAND], path or init [FILE]")


def _show(command: str, named: str | None, *, ask: bool, as_json: bool) -> None:
    if command not in TABLES:
        raise ConfigError(f"no settings are kept for {command!r}, but for {', '.join(TABLES)}")
    settings = settings_of(command)
    found = find_settings(command, settings, named)
    values: dict[str, Any] = {
        name: found.values.get(name, setting.usual) for name, setting in settings.items()
    }
    origins = found.origins
    if command in _ANSWERING:
        held = _held(values, origins, ask=ask)
        values |= {name: getattr(held, name) for name in values.keys() & _names(held)}
        origins = held.origins
    told = {
        name: (None if value is None else str(value) if isinstance(value, Path) else value)
        for name, value in values.items()
    }
    texts = {name: origins.get(name, USUAL).text for name in told}
    if as_json:
        fields_ = {name: {"value": value, "from": texts[name]} for name, value in told.items()}
        print(
            json.dumps(
                {"command": command, "files": [str(path) for path in found.files], "settings": fields_}
            )
        )
        return
    open_terminal().show(*_picture(command, found, told, texts))


def _held(values: Mapping[str, Any], origins: Origins, *, ask: bool) -> AnswerOptions:
    """As they hold, with what the model suggests if it is asked. Raises: ConfigError, Unreachable, NoRoute."""
    names = {field.name for field in fields(AnswerOptions)}
    given = {name: value for name, value in values.items() if name in names}
    options = AnswerOptions(**given, origins=origins)
    if not ask:
        return settled(options, {})
    screen = Screen(open_terminal())
    with open_client(options.where, screen.terminal, screen.event) as client:
        return settled(options, client.text.about.suggested)


def _names(options: AnswerOptions) -> set[str]:
    return {field.name for field in fields(options)} - {ORIGINS}


def _picture(
    command: str, found: Found, values: Mapping[str, Any], texts: Mapping[str, str]
) -> Iterator[Table | Text]:
    read = ", ".join(map(str, found.files)) or "no file"
    yield Text(f"swarm {command}, by {read}", style="dim")
    table = Table(box=None, padding=(0, 1), show_edge=False, header_style="dim")
    for header in ("setting", "value", "from"):
        table.add_column(header)
    for name, value in values.items():
        usual = texts[name] == USUAL.text
        shown = "" if value is None else one_line(_literal(value))
        table.add_row(name, shown, one_line(texts[name]), style="dim" if usual else "")
    yield table


def _init(path: Path) -> None:
    """Raises: ConfigError, where there is one, or none can be written."""
    if path.exists():
        raise ConfigError(f"{path} is there already")
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_whole(path, "\n".join(_new_file()).encode(), replace=False)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error}") from error
    open_terminal().show(Text(str(path)))


def _new_file() -> Iterator[str]:
    """The lines of a file in which every setting stands, with what it is without."""
    yield "# Settings of `swarm`, see docs/configuration.md. Take the # away from what is to hold."
    yield from _lines(shared_settings())
    for table in _BEGUN_WITH:
        yield from ("", f"[{table}]")
        yield from _lines(settings_of(table))
    yield ""


def _lines(settings: Mapping[str, Setting]) -> Iterator[str]:
    for setting in settings.values():
        value = _EMPTY.get(setting.kind, '""') if setting.usual is None else _literal(setting.usual)
        yield from (
            "",
            *(f"# {line}" for line in textwrap.wrap(setting.help, 110)),
            f"#{setting.name} = {value}",
        )


def _literal(value: object) -> str:
    """As TOML has it."""
    return json.dumps(value, ensure_ascii=False)
