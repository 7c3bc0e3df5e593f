"""What a configuration may say: the options of the commands, read off their signatures.

At the top of a file stand settings of whoever asks a swarm; a table with a command's name holds that command's own.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Final, get_args, get_origin

from typer.models import OptionInfo

# Commands that have a table of their name. A demo is its own swarm: nothing of a file is meant for it.
TABLES: Final = ("chat", "doctor", "generate", "models", "node", "plan", "route", "serve", "status", "up")
# Those that ask a swarm: what stands at the top of a file holds for all of them that have such an option.
ASKING: Final = ("chat", "generate", "route", "serve", "status")
# What holds for all others too.
FOR_ALL: Final = frozenset({"join"})
# Other names of settings: a contrast is between an expert and an amateur.
ALIASES: Final = {"expert": "model"}
# Options that are about one call of a command.
_OF_A_CALL: Final = frozenset({"as_json", "config", "prompts", "stop_on_eof", "verbose", "watch"})


@dataclass(frozen=True, slots=True)
class Setting:
    """One of a command's options that may be said elsewhere.

    kind   bool, int, float, str, Path, or list of texts; what is called FILE is a Path, whatever it becomes
    least  and most: the range of a number, where there is one
    """

    name: str
    kind: type
    usual: Any
    help: str
    least: float | None = None
    most: float | None = None


def settings_in(command: Callable[..., None]) -> dict[str, Setting]:
    """The settings among a command's parameters, in their order."""
    found = {}
    for parameter in inspect.signature(command, eval_str=True).parameters.values():
        if get_origin(parameter.annotation) is not Annotated or parameter.name in _OF_A_CALL:
            continue
        base, *extras = get_args(parameter.annotation)
        info = next((extra for extra in extras if isinstance(extra, OptionInfo)), None)
        if info is not None:
            kind = Path if info.metavar == "FILE" else _kind(base)
            found[parameter.name] = Setting(
                parameter.name, kind, parameter.default, info.help or "", info.min, info.max
            )
    return found


@cache
def settings_of(command: str) -> Mapping[str, Setting]:
    """What may stand in the table of a command, whose module is imported for it."""
    return settings_in(getattr(import_module(f"swarm.cli.{command}"), command))


@cache
def shared_settings() -> Mapping[str, Setting]:
    """What may stand at the top. Defaults are those of the first command that has it."""
    found: dict[str, Setting] = {}
    for command in ASKING:
        if command != "serve":  # where it listens and whom it serves is nobody else's
            found = {**settings_of(command), **found}
    return found


def takes_from_top(command: str, name: str) -> bool:
    """Whether a command goes by what stands at the top of a file under this name."""
    return name in FOR_ALL or command in ASKING


def _kind(base: Any) -> type:
    kinds = [each for each in (get_args(base) or (base,)) if each is not NoneType]
    if get_origin(base) is list:
        return list
    [kind] = [get_origin(each) or each for each in kinds]
    assert kind in (bool, int, float, str, Path, list), base
    found: type = kind
    return found
