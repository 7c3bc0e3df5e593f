"""Where the values of a command's options come from that are not typed: files and the environment.

They reach the command as click's `default_map`, which stands below what is typed and above the options' defaults.
"""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final

import platformdirs
import typer

from protocol.errors import ConfigError
from protocol.files import read_small
from protocol.plain import one_line
from swarm.cli.origins import USUAL, Origin, Origins, Rank
from swarm.cli.schema import ALIASES, Setting, settings_in, takes_from_top
from swarm.cli.settings_file import Document, out_of_range, parse_document
from swarm.cli.terminal import open_terminal

FILE_NAME: Final = "swarm.toml"
# In place of a file: none is read.
NO_FILE: Final = "none"
_FILE_BYTES: Final = 64 * 1024
_META: Final = "swarm.cli.sources"
_TRUE: Final = frozenset({"1", "true", "yes", "on"})
_FALSE: Final = frozenset({"0", "false", "no", "off"})
# Variables that hold in every process: where things are kept, which kernels run, which keys may ask.
_NO_SETTINGS: Final = frozenset({"SWARM_HOME", "SWARM_ISA", "SWARM_API_KEY"})
# A list of which each member may hold blanks: in a variable it has one.
_WHOLE: Final = frozenset({"stop"})


@dataclass(frozen=True, slots=True)
class Found:
    """What files and the environment say to one command."""

    values: Mapping[str, Any]
    origins: Origins
    files: Sequence[Path]  # in the order in which they were read: a later one is worth more


def own_file() -> Path:
    """Where the user's own file is, or would be."""
    home = os.environ.get("SWARM_HOME")
    return (Path(home) if home else platformdirs.user_config_path("swarm")) / FILE_NAME


def find_files(named: str | None) -> list[tuple[Path, Rank]]:
    """The files that hold, those of less worth first. `named` is the only one, or NO_FILE; so is SWARM_CONFIG."""
    named = named or os.environ.get("SWARM_CONFIG") or None
    if named == NO_FILE:
        return []
    if named is not None:
        return [(Path(os.path.expanduser(named)), Rank.FILE)]
    own, here = own_file(), Path(FILE_NAME)
    found = [(own, Rank.FILE)] if os.path.exists(own) else []
    if os.path.exists(here) and not (found and here.samefile(own)):
        found.append((here, Rank.FOLDER))
    return found


def find_settings(command: str, settings: Mapping[str, Setting], named: str | None = None) -> Found:
    """What there is for a command with these settings. Raises: ConfigError."""
    values: dict[str, Any] = {}
    origins: dict[str, Origin] = {}
    files = find_files(named)
    for path, rank in files:
        said = parse_document(_load(path, rank))
        shared = {name: value for name, value in said.shared.items() if takes_from_top(command, name)}
        given = {**shared, **said.tables.get(command, {})}
        for name in given.keys() & settings.keys():
            values[name], origins[name] = given[name], Origin(rank, str(path))
    for setting in settings.values():
        variable = next(filter(os.environ.get, _variables(command, setting.name)), None)
        if variable is not None:
            values[setting.name] = _parse(os.environ[variable], setting, variable)
            origins[setting.name] = Origin(Rank.ENVIRONMENT, variable)
    return Found(values, origins, [path for path, _ in files])


def configured(name: str, command: Callable[..., None]) -> Callable[..., None]:
    """The command, with an option that names a file, and with values for its options from there and elsewhere."""
    signature = inspect.signature(command, eval_str=True)
    settings = settings_in(command)

    def read(context: typer.Context, file: str | None) -> None:
        if context.resilient_parsing:  # a shell completes what is typed
            return
        found = find_settings(name, settings, file)
        context.default_map = dict(found.values)
        context.meta[_META] = found.origins
        if any(origin.rank == Rank.FOLDER for origin in found.origins.values()) and sys.stderr.isatty():
            open_terminal().remark(f"with settings of ./{FILE_NAME}: swarm config show {name}")

    # A parameter of its own comes first: values are looked up once it has been read.
    option = typer.Option(
        "--config",
        metavar=f"FILE|{NO_FILE}",
        help=f"Where settings stand that are not given here. Default: $SWARM_CONFIG, else ./{FILE_NAME} and your own "
        "(see swarm config).",
        is_eager=True,
        callback=read,
        show_default=False,
    )
    kind = Annotated[str | None, option]
    added = inspect.Parameter("config", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=kind)

    def run(config: str | None = None, **given: Any) -> None:
        command(**given)

    run.__name__, run.__doc__ = command.__name__, command.__doc__
    parameters = [each.replace(kind=each.KEYWORD_ONLY) for each in signature.parameters.values()]
    run.__signature__ = signature.replace(parameters=[*parameters, added])  # type: ignore[attr-defined]
    return run


def origins_of(context: typer.Context) -> Origins:
    """Where the values of a command came from that has been parsed."""
    found: Origins = context.meta.get(_META, {})
    known = {}
    for name in context.params:
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            known[name] = Origin(Rank.FLAG, f"--{name.replace('_', '-')}")
        elif source is not None and source.name == "DEFAULT_MAP":
            known[name] = found.get(name, USUAL)
    return known


def without_settings(environment: Mapping[str, str]) -> dict[str, str]:
    """An environment for a process of ours that is told all its options: without those here, or any file's."""
    kept = {
        name: value
        for name, value in environment.items()
        if not name.startswith("SWARM_") or name in _NO_SETTINGS
    }
    return {**kept, "SWARM_CONFIG": NO_FILE}


def _load(path: Path, rank: Rank) -> Document:
    """Raises: ConfigError."""
    try:
        data = read_small(path, _FILE_BYTES + 1)
        text = data.decode()
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read: {one_line(str(error))}") from error
    if len(data) > _FILE_BYTES:
        raise ConfigError(f"{path} has more than {_FILE_BYTES} bytes: that is no configuration")
    return Document(str(path), text, path.absolute().parent, trusted=rank != Rank.FOLDER)


def _variables(command: str, name: str) -> list[str]:
    """The variables that may say it, the first that does wins."""
    names = [name, *(alias for alias, meant in ALIASES.items() if meant == name)]
    found = [f"SWARM_{command}_{each}" for each in names]
    if takes_from_top(command, name):
        found += [f"SWARM_{each}" for each in names]
    if name == "home":
        found.append("SWARM_HOME")  # where all else is kept too
    return [each.upper() for each in found]


def _parse(text: str, setting: Setting, variable: str) -> Any:
    """A variable's value as the option has it. Raises: ConfigError."""
    fault = ""
    value: Any = text
    if setting.kind is list:
        value = [text] if setting.name in _WHOLE else text.replace(",", " ").split()
    elif setting.kind is bool:
        value = text.lower() in _TRUE
        if not value and text.lower() not in _FALSE:
            fault = f"{setting.name} is 1 or 0, not {text!r}"
    elif setting.kind in (int, float):
        try:
            value = setting.kind(text)
            fault = out_of_range(value, setting)
        except ValueError:
            fault = (
                f"{setting.name} is {'a whole number' if setting.kind is int else 'a number'}, not {text!r}"
            )
    if fault:
        raise ConfigError(f"{variable}: {fault}")
    return value
