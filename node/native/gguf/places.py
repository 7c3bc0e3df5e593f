"""Which GGUF file a word of the user's means: on this machine, or on the hub."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from node.engine.sources import HUB_ID, FolderSource, HubSource, Source
from node.native.gguf.header import begins_like_gguf
from protocol.errors import ConfigError

SUFFIX: Final = ".gguf"
PART: Final = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf", re.ASCII | re.IGNORECASE | re.DOTALL)
_IN_HUB: Final = re.compile(r"([^/:]+/[^/:]+)(?::([\w.-]{1,80})|/(.+\.gguf))?", re.ASCII | re.IGNORECASE)
# What lies beside models and is none: projectors of images, matrices of importance.
_BESIDE: Final = ("mmproj", "imatrix")
# Files that are named where one has to be chosen.
_NAMED: Final = 12


@dataclass(frozen=True, slots=True)
class Place:
    """A GGUF file, or the first part of one."""

    source: Source
    file: str


def find_gguf(model: str, cache_dir: str | None = None) -> Place | None:
    """The GGUF file that `model` names: itself, or the only one (or the first part) of a folder without config.json.

    A file may be called anything, as those of Ollama are. On the hub it is the only one of a repository without
    config.json (`org/name`), or one of several, by what its name has of its own (`org/name:Q4_K_M`) or by all of it
    (`org/name/file.gguf`).

    Raises: ConfigError, where there are several, or the hub cannot give it.
    """
    path = Path(model).expanduser()
    if path.is_file():
        is_gguf = path.suffix.lower() == SUFFIX or begins_like_gguf(path)
        return Place(FolderSource(path.parent), path.name) if is_gguf else None
    if path.is_dir():
        return None if (path / "config.json").exists() else _only(FolderSource(path), model, str(path) + "/")
    named = _IN_HUB.fullmatch(model)
    if named is None or not HUB_ID.fullmatch(named[1]) or named[1].lower().endswith(SUFFIX):
        return None
    source = HubSource(named[1], cache_dir)
    if named[3]:
        return Place(source, named[3])
    return _by_tag(source, named[2]) if named[2] else _of_repository(source)


def _of_repository(source: HubSource) -> Place | None:
    """The only one, if there is no config.json."""
    try:
        if source.find("config.json") is not None:
            return None
    except ConfigError as error:
        # Where the hub cannot be reached, what was fetched before says what kind of model it is.
        try:
            found = _models(source.files())
        except ConfigError:
            raise error from None
        if not found:
            return None
    return _only(source, source.name, f"{source.name}/")


def _only(source: Source, model: str, prefix: str) -> Place | None:
    found = _models(source.files())
    if len(found) > 1:
        raise ConfigError(f"{model} has several GGUF files; name one of them: {_names(prefix, found)}")
    return Place(source, found[0]) if found else None


def _by_tag(source: HubSource, tag: str) -> Place:
    all_of_them = _models(source.files())
    own = re.compile(rf"(?<![A-Za-z0-9]){re.escape(tag)}(?![A-Za-z0-9_])", re.IGNORECASE)
    found = [file for file in all_of_them if own.search(file.removesuffix(SUFFIX))]
    if len(found) == 1:
        return Place(source, found[0])
    prefix = f"{source.name}/"
    if found:
        raise ConfigError(f"{tag} is in several names; name one of them: {_names(prefix, found)}")
    there = f"; there are {_names(prefix, all_of_them)}" if all_of_them else ""
    raise ConfigError(f"{source.name} has no GGUF file with {tag} in its name{there}")


def _models(files: Iterable[str]) -> list[str]:
    """Of all names those of models, and of those in parts the first ones."""
    found = []
    for file in files:
        name = file.rpartition("/")[2].lower()
        part = PART.fullmatch(name)
        is_first = part is None or int(part[2]) == 1
        if name.endswith(SUFFIX) and is_first and not any(word in name for word in _BESIDE):
            found.append(file)
    return sorted(found)


def _names(prefix: str, files: Sequence[str]) -> str:
    more = f" and {len(files) - _NAMED} more" if len(files) > _NAMED else ""
    return ", ".join(prefix + file for file in files[:_NAMED]) + more
