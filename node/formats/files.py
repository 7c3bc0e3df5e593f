"""The files of a quantised checkpoint, as if they held what they stand for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from node.engine.files import CheckpointFiles
from node.engine.shards import StoredTensor
from node.formats.form import Form
from node.formats.raw import EIGHT_BIT_FLOATS, Raw
from node.formats.scheme import Scheme
from protocol.errors import BadCheckpoint
from protocol.inventory import Inventory
from protocol.model import Manifest

_WHOLE: Final = "weight"


class QuantisedFiles:
    """See `node.engine.files.CheckpointFiles`: the same questions, by the names that plain tensors would have."""

    def __init__(self, files: CheckpointFiles, scheme: Scheme) -> None:
        """Raises: BadCheckpoint, if a weight lacks a part, by the names of all tensors."""
        self.name = files.name
        self.source = files.source
        self.scheme = scheme
        self._files = files
        self._parts = _grouped(files.name, files.tensors, scheme)
        parts = {name for found in self._parts.values() for name in found.values()}
        plain = {name for name in files.tensors if name not in parts and not name.endswith(scheme.dropped)}
        self._tensors = plain | self._parts.keys()

    @property
    def tensors(self) -> Iterable[str]:
        """The names that a plain checkpoint's tensors would have."""
        return self._tensors

    def file(self, name: str) -> bytes:
        """The bytes of a small file. Raises: KeyError, if there is none of that name."""
        return self._files.file(name)

    def manifest(self, blocks: int, hidden_size: int, vocab_size: int, context: int) -> Manifest:
        """What the nodes of this model agree on: names are those in the files."""
        return self._files.manifest(blocks, hidden_size, vocab_size, context)

    def has(self, tensors: Iterable[str]) -> bool:
        """Whether the files of these tensors are on this machine already; fetches nothing."""
        return self._files.has(self._named(tensors))

    def parts(self, tensors: Iterable[str]) -> dict[str, tuple[Path, StoredTensor]]:
        """See `CheckpointFiles`."""
        return self._files.parts(self._named(tensors))

    def stored(self, tensor: str) -> tuple[Path, StoredTensor]:
        """Where in which file a tensor lies that is kept plainly. Raises: BadCheckpoint."""
        path, found = self._files.stored(tensor)
        if found.dtype in EIGHT_BIT_FLOATS:
            raise BadCheckpoint(f"{path}: {tensor} is stored as {found.dtype}, and has no scale")
        return path, found

    def stored_dtype(self) -> str | None:
        """See `CheckpointFiles`."""
        return self._files.stored_dtype()

    def inventory(self, tensors: Iterable[str]) -> Inventory:
        """What all parts of these tensors are as they are stored. Raises: BadCheckpoint."""
        return self._files.inventory(self._named(tensors))

    def form(self, tensor: str) -> Form | None:
        """The form that a tensor is kept in, mapped; None for a plain one. Raises: BadCheckpoint."""
        if tensor not in self._parts:
            return None
        raw = {}
        for part, name in self._parts[tensor].items():
            path, stored = self._files.stored(name)
            raw[part] = Raw(name, path, stored)
        return self.scheme.form(tensor, raw)

    def kinds(self) -> str:
        """In which form matrices are, for people."""
        return self.scheme.title

    def _named(self, tensors: Iterable[str]) -> list[str]:
        return [name for tensor in tensors for name in self._parts.get(tensor, {tensor: tensor}).values()]


def _grouped(where: str, names: Iterable[str], scheme: Scheme) -> Mapping[str, Mapping[str, str]]:
    """Of each weight that is in several tensors its parts and their names. Raises: BadCheckpoint."""
    known = set(names)
    found: dict[str, dict[str, str]] = {}
    for name in known:
        for suffix, (ending, part) in scheme.parts.items():
            if name.endswith(suffix):
                found.setdefault(name.removesuffix(suffix) + ending, {})[part] = name
                break
    for weight, parts in found.items():
        if weight in known:
            parts[_WHOLE] = weight
        if missing := sorted(scheme.needed - parts.keys()):
            raise BadCheckpoint(f"{where}: {min(parts.values())} is there, but no {missing[0]} of {weight}")
    return found
