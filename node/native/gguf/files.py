"""A GGUF file, or one in parts, as the checkpoint that transformers would have of the same model."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from node.engine import shards
from node.engine.files import make_manifest
from node.engine.shards import StoredTensor
from node.native.gguf.architectures import GgufTensor, rename
from node.native.gguf.config import read_config
from node.native.gguf.header import HEADER_BYTES, Entry, Header, parse_header, read_header
from node.native.gguf.places import PART, SUFFIX, Place
from node.native.gguf.quants import TYPES, widen
from node.native.gguf.tokenizer import text_files
from protocol.errors import BadCheckpoint
from protocol.inventory import Inventory
from protocol.model import Manifest

_PARTS: Final = 256
# The most that a vector of factors for the rotation may have: half a head.
_FACTORS: Final = 2048
# Of a file on the hub so much is fetched to see what is in it, and more if need be: the first part comes with the
# vocabulary, the others have no more to tell than where their tensors lie.
_FIRST_BYTES: Final = 4 << 20
_OTHER_BYTES: Final = 256 << 10
_MORE: Final = 4


class GgufFiles:
    """See `node.engine.files.CheckpointFiles`: the same questions, answered from other files."""

    def __init__(self, place: Place) -> None:
        """Reads the headers. Raises: BadCheckpoint, UnsupportedModel, ConfigError."""
        part = PART.fullmatch(place.file)
        self.name = (part[1] if part else place.file.removesuffix(SUFFIX)).rpartition("/")[2]
        self._source = place.source
        first = _read(place, _FIRST_BYTES)
        self._headers = _parts(place, first)
        self._entries = self._all_entries()
        entries = {name: entry for name, (_, entry) in self._entries.items()}
        config = read_config(first.metadata, entries, self._vector)
        tokens, rows = first.metadata.get("tokenizer.ggml.tokens"), config["vocab_size"]
        if isinstance(tokens, list) and len(tokens) > rows:
            raise BadCheckpoint(f"{self.name}: has {len(tokens)} tokens, and an embedding of {rows}")
        # The same bytes from the same file, wherever it lies: the model's digest binds them.
        self._files = {
            "config.json": json.dumps(config, sort_keys=True).encode(),
            **text_files(first.metadata),
        }
        self._paths: dict[str, Path] = {}
        self._tensors: dict[str, tuple[str, GgufTensor]] = {}
        for name, (file, entry) in self._entries.items():
            for theirs, tensor in rename(first.metadata["general.architecture"], name, entry, config).items():
                self._tensors[theirs] = file, tensor

    @property
    def tensors(self) -> Iterable[str]:
        """The names of all tensors, as transformers has them."""
        return self._tensors.keys()

    def file(self, name: str) -> bytes:
        """The bytes of a small file. Raises: KeyError, if there is none of that name."""
        return self._files[name]

    def manifest(self, blocks: int, hidden_size: int, vocab_size: int, context: int) -> Manifest:
        """What the nodes of this model agree on."""
        return make_manifest(self._files, self._tensors, (blocks, hidden_size, vocab_size, context))

    def has(self, tensors: Iterable[str]) -> bool:
        """Whether the files of these tensors are on this machine already; fetches nothing."""
        return all(self._source.has(file) for file in {self._tensors[name][0] for name in tensors})

    def known(self, tensor: str) -> GgufTensor:
        """Where it lies in its file, wherever that is."""
        return self._tensors[tensor][1]

    def stored(self, tensor: str) -> tuple[Path, GgufTensor]:
        """Where in which file a tensor lies, which is fetched if need be. Raises: BadCheckpoint, ConfigError."""
        file, found = self._tensors[tensor]
        return self._path(file), found

    def parts(self, tensors: Iterable[str]) -> dict[str, tuple[Path, StoredTensor]]:
        """See `node.engine.files.CheckpointFiles`."""
        return {name: self.stored(name) for name in tensors}

    def inventory(self, tensors: Iterable[str]) -> Inventory:
        """What these tensors are as they are stored; reads them. Raises: BadCheckpoint."""
        return shards.take_inventory(self.parts(tensors))

    def kinds(self) -> str:
        """The types of matrices, those with the most bytes first, for people."""
        sizes: Counter[str] = Counter()
        for _, tensor in self._tensors.values():
            if len(tensor.shape) > 1:
                sizes[tensor.dtype] += tensor.stop - tensor.start
        return ", ".join(kind for kind, _ in sizes.most_common())

    def _all_entries(self) -> dict[str, tuple[str, Entry]]:
        found: dict[str, tuple[str, Entry]] = {}
        for file, header in self._headers.items():
            for name, entry in header.tensors.items():
                if name in found:
                    raise BadCheckpoint(f"{file}: has {name}, which another part has too")
                found[name] = file, entry
        return found

    def _path(self, file: str) -> Path:
        if file not in self._paths:
            path = self._source.find(file)
            if path is None:
                raise BadCheckpoint(f"{self._source.name}/{file} is missing")
            if read_header(path).tensors != self._headers[file].tensors:
                raise BadCheckpoint(f"{path}: has other tensors than it began with")
            self._paths[file] = path
        return self._paths[file]

    def _vector(self, name: str) -> NDArray[np.float32]:
        if name not in self._entries:
            raise BadCheckpoint(f"{self.name}: no tensor {name}")
        file, entry = self._entries[name]
        if len(entry.shape) != 1 or entry.shape[0] > _FACTORS or TYPES[entry.type].values > 1:
            raise BadCheckpoint(f"{self.name}: {name} makes no sense")
        raw, _ = self._source.part(file, entry.start, entry.stop)
        if len(raw) != entry.stop - entry.start:
            raise BadCheckpoint(f"{self._source.name}/{file}: cut off")
        return widen(entry.type, np.frombuffer(raw, np.uint8).reshape(1, -1)).reshape(-1)


def _read(place: Place, size_bytes: int) -> Header:
    """The header of a file; of one that is not on this machine not much more is fetched. Raises: BadCheckpoint."""
    source, file = place.source, place.file
    if source.has(file) and (path := source.find(file)) is not None:
        return read_header(path)
    where = f"{source.name}/{file}"
    while size_bytes < _MORE * HEADER_BYTES:
        found = parse_header(*source.part(file, 0, min(size_bytes, HEADER_BYTES)), where)
        if found is not None:
            return found
        size_bytes *= _MORE
    raise BadCheckpoint(f"{where}: its header never ends")


def _parts(place: Place, first: Header) -> dict[str, Header]:
    """All parts by name. Raises: BadCheckpoint."""
    count: Any = first.metadata.get("split.count", 1)
    where = f"{place.source.name}/{place.file}"
    if type(count) is not int or not 0 <= count <= _PARTS:
        raise BadCheckpoint(f"{where}: is said to be in {str(count)[:40]} parts")
    found = {place.file: first}
    if count < 2:
        return found
    part = PART.fullmatch(place.file)
    if part is None or int(part[2]) != 1 or int(part[3]) != count:
        wanted = f"-00001-of-{count:05}{SUFFIX}"
        raise BadCheckpoint(f"{where}: is in {count} parts; name the first, which ends with {wanted}")
    for number in range(2, count + 1):
        other = f"{part[1]}-{number:05}-of-{count:05}{SUFFIX}"
        found[other] = _read(Place(place.source, other), _OTHER_BYTES)
    return found
