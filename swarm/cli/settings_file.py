"""What a swarm.toml says, checked; every fault is one line with the file and the line in it. Pure."""

from __future__ import annotations

import os.path
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final

from protocol.errors import ConfigError
from protocol.plain import one_line
from swarm.cli.schema import ALIASES, FOR_ALL, TABLES, Setting, settings_of, shared_settings

# What may stand in a file that nobody named and that is only found in the working folder: how answers are made.
# Nothing that says who gets the prompt or who may ask, or that names a file: the folder may be a stranger's.
HARMLESS: Final = frozenset(
    {
        "allowed", "banned", "frequency_penalty", "logit_bias", "max_new_tokens", "max_seconds", "min_new_tokens",
        "min_p", "mode", "no_repeat_ngram", "presence_penalty", "repetition_penalty", "seed", "stop", "strategy",
        "stream", "temperature", "top_k", "top_p", "typical_p",
    }
)  # fmt: skip
# Names of models that are folders or files where they look like it.
_PLACES: Final = frozenset({"amateur", "draft", "expert", "model"})
# Whole numbers up to here are numbers of any other kind too.
_LARGEST: Final = 2**53
# A fault is looked for in so many lines.
_LINES: Final = 500
_WORDS: Final = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
    Path: "a text, the path of a file or folder",
    list: "a list of texts or whole numbers",
}


@dataclass(frozen=True, slots=True)
class Document:
    """A file as it was found.

    name     what it is called in errors
    folder   what paths in it begin from
    trusted  whether the user named it or it is the user's own
    """

    name: str
    text: str
    folder: Path
    trusted: bool


@dataclass(frozen=True, slots=True)
class Said:
    """Values by the names of settings: for all who ask, and by command."""

    shared: Mapping[str, Any]
    tables: Mapping[str, Mapping[str, Any]]


def parse_document(document: Document) -> Said:
    """Raises: ConfigError."""
    try:
        content = tomllib.loads(document.text)
    except (ValueError, RecursionError) as error:  # a TOMLDecodeError, or a number of thousands of digits
        raise ConfigError(f"{document.name} is not TOML: {one_line(str(error))}") from error
    tables = {}
    top = {}
    for key, value in content.items():
        if key in TABLES and isinstance(value, dict):
            tables[key] = _checked(document, value, settings_of(key), (key,))
        else:
            top[key] = value
    # Of what a node needs of a file, a node learns without the modules of a client.
    known = (
        shared_settings() if top.keys() - FOR_ALL else {name: settings_of("node")[name] for name in FOR_ALL}
    )
    return Said(_checked(document, top, known, ()), tables)


def _checked(
    document: Document, content: Mapping[str, Any], known: Mapping[str, Setting], table: tuple[str, ...]
) -> dict[str, Any]:
    """The values of a table, by the names of settings. Raises: ConfigError."""
    found: dict[str, Any] = {}
    for key, value in content.items():
        written = key.replace("-", "_")
        name = ALIASES.get(written, written)
        fault = ""
        if name not in known:
            fault = _unknown(key, known, table)
        elif name in found:
            fault = f"{name} is said twice"
        elif not document.trusted and name not in HARMLESS:
            fault = (
                f"{name} is not taken from a file that was only found in the working folder, which may be "
                f"anybody's: name it with --config {document.name}, or set it in your own (swarm config path)"
            )
        if not fault:
            found[name], fault = _read(value, known[name], document.folder)
        if fault:
            line = _line_of(document.text, (*table, key))
            raise ConfigError(f"{document.name}{f':{line}' if line else ''}: {one_line(fault)}")
    return found


def _unknown(key: str, known: Mapping[str, Setting], table: tuple[str, ...]) -> str:
    """What is wrong with a name that there is not, and what may have been meant."""
    where = f" in [{table[0]}]" if table else ""
    names = [*known, *ALIASES, *(() if table else TABLES)]
    near = get_close_matches(key.replace("-", "_"), names, 1)
    elsewhere = [name for name in TABLES if not table and key in settings_of(name)]
    if near and near[0] in TABLES:
        hint = f"did you mean the table [{near[0]}]?"
    elif elsewhere:
        hint = f"it belongs in [{'] or ['.join(elsewhere)}]"
    elif near:
        hint = f"did you mean {near[0]}?"
    else:
        hint = "`swarm config show` lists all"
    return f"there is no setting {key!r}{where}: {hint}"


def _read(value: Any, setting: Setting, folder: Path) -> tuple[Any, str]:
    """A value as an option has it; and what is wrong with it, if anything."""
    if setting.name == "strategy" and isinstance(value, dict):
        value = _strategy(value)
    found = _as_kind(value, setting.kind)
    if found is None:
        return None, f"{setting.name} is {_WORDS[setting.kind]}, not {_shown(value)}"
    if fault := out_of_range(found, setting):
        return None, fault
    if setting.kind is Path or (setting.name in _PLACES and found.startswith(("./", "../", "~/"))):
        return str(folder / os.path.expanduser(found)), ""
    return found, ""


def out_of_range(value: Any, setting: Setting) -> str:
    """What is wrong with a number, if anything."""
    below = setting.least is not None and value < setting.least
    above = setting.most is not None and value > setting.most
    if not below and not above:
        return ""
    most = "" if setting.most is None else f" and at most {setting.most}"
    return f"{setting.name} {value}: it is at least {setting.least or 0}{most}"


def _as_kind(value: Any, kind: type) -> Any:
    """The value, if it is of the kind or as good as; None, if not."""
    if kind is list:
        if isinstance(value, dict):  # of a bias, by id
            value = [f"{key}={each}" for key, each in value.items() if type(each) in (int, float)]
        values = value if isinstance(value, list) else [value]
        return [str(each) for each in values] if all(type(each) in (str, int) for each in values) else None
    if kind is float and type(value) is int:
        return float(value) if abs(value) <= _LARGEST else None
    return value if type(value) is (str if kind is Path else kind) else None


def _strategy(table: Mapping[str, Any]) -> str:
    """{ name = "beam_search", beams = 4 } as it is typed: beam_search:beams=4."""
    given = {key: str(value).lower() for key, value in table.items() if key != "name"}
    parameters = ",".join(f"{key}={value}" for key, value in given.items())
    return f"{table.get('name', '')}{':' if parameters else ''}{parameters}"


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _line_of(text: str, path: tuple[str, ...]) -> int | None:
    """The line in which a value begins: behind the longest beginning that is TOML without it.

    The parser alone knows what is a key and what stands in a text over several lines.
    """
    lines = text.split("\n")
    begins = 0
    for count in range(1, min(len(lines), _LINES) + 1):
        try:
            found: Any = tomllib.loads("\n".join(lines[:count]))
        except ValueError:
            continue
        for name in path:
            found = found.get(name) if isinstance(found, dict) else None
        if found is not None:
            return begins + 1
        begins = count
    return None
