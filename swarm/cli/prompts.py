"""Prompts as they are given to a command: on its line, or in a file with one a line, as text or as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from protocol.errors import ConfigError
from swarm.answers import PROMPTS
from swarm.cli.options import readable
from swarm.cli.streams import read_input

# What stands for standard input.
INPUT: Final = "-"
FILE_BYTES: Final = 1 << 28


@dataclass(frozen=True, slots=True)
class Given:
    """One prompt; `id` is whatever its line has by that name, told again with its answer."""

    text: str
    id: Any = None


def read_prompts(words: Sequence[str], file: str | None) -> list[Given]:
    """All prompts, in order: those on the command line, else those of the file ("-" is standard input, for both).

    Raises: ConfigError, where there are none, one is empty, or the file is not what it should be.
    """
    if file is None:
        given = [Given(read_input() if word == INPUT else readable(word)) for word in words]
    elif words:
        raise ConfigError("prompts are given as arguments or by --prompts, not both")
    else:
        given = list(parse_prompts(_read(file)))
    if not given:
        raise ConfigError("there is no prompt: give one, or a file with --prompts (see --help)")
    if not all(each.text for each in given):
        raise ConfigError("the prompt is empty: there is nothing to answer")
    if len(given) > PROMPTS:
        raise ConfigError(f"{len(given)} prompts: at most {PROMPTS} are taken at once")
    return given


def parse_prompts(text: str) -> Iterator[Given]:
    """One for each line that is not blank. Where the first is a JSON object, all are.

    Those are {"prompt": TEXT}, with an "id" or without. Raises: ConfigError, which names the line.
    """
    lines = [(number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    as_json = bool(lines) and lines[0][1].lstrip().startswith("{")
    for number, line in lines:
        yield _parse_line(number, line) if as_json else Given(line)


def _parse_line(number: int, line: str) -> Given:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        found = None
    if (
        not isinstance(found, dict)
        or not isinstance(found.get("prompt"), str)
        or not found.keys() <= {"prompt", "id"}
    ):
        raise ConfigError(
            f'prompts, line {number}: it is a JSON object {{"prompt": TEXT}}, with an "id" or without'
        )
    return Given(found["prompt"], found.get("id"))


def _read(file: str) -> str:
    if file == INPUT:
        return read_input()
    path = Path(file)
    try:
        if path.stat().st_size > FILE_BYTES:
            raise ConfigError(f"prompts {readable(file)}: the file has more than {FILE_BYTES} bytes")
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise ConfigError(f"prompts {readable(file)}: {error.strerror or error}") from error


def one_line_of(text: str) -> str:
    """An answer as one line: its line breaks as \\n, a backslash as two."""
    return text.replace("\\", "\\\\").replace("\r", "\\r").replace("\n", "\\n")
