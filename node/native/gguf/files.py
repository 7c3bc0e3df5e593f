"""A GGUF file, or one in parts, as the checkpoint that transformers would have of the same model."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from node.engine import shards
from node.engine.files import make_manifest
from node.native.gguf.architectures import GgufTensor, rename
from node.native.gguf.config import read_config
from node.native.gguf.header import Entry, Header, begins_like_gguf, read_header
from node.native.gguf.quants import TYPES, widen
from node.native.gguf.tokenizer import text_files
from protocol.errors import BadCheckpoint, ConfigError
from protocol.model import Manifest

SUFFIX: Final = ".gguf"
_PART: Final = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf", re.ASCII)
_PARTS: Final = 256
# The most that a vector of factors for the rotation may have: half a head.
_FACTORS: Final = 2048


class GgufFiles:
    """See `node.engine.files.CheckpointFiles`: the same questions, answered from other files."""

    def __init__(self, path: Path) -> None:
        """Reads the headers. Raises: BadCheckpoint, UnsupportedModel."""
        self.name = path.name.removesuffix(SUFFIX)
        first = read_header(path)
        self._entries = _parts(path, first)
        entries = {name: entry for name, (_, entry) in self._entries.items()}
        config = read_config(first.metadata, entries, self._vector)
        tokens, rows = first.metadata.get("tokenizer.ggml.tokens"), config["vocab_size"]
        if isinstance(tokens, list) and len(tokens) > rows:
            raise BadCheckpoint(f"{path}: has {len(tokens)} tokens, and an embedding of {rows}")
        # The same bytes from the same file, wherever it lies: the model's digest binds them.
        self._files = {
            "config.json": json.dumps(config, sort_keys=True).encode(),
            **text_files(first.metadata),
        }
        self._tensors: dict[str, tuple[Path, GgufTensor]] = {}
        for name, (part, entry) in self._entries.items():
            for theirs, tensor in rename(first.metadata["general.architecture"], name, entry, config).items():
                self._tensors[theirs] = part, tensor

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
        """Whether these are on this machine: all are."""
        return True

    def stored(self, tensor: str) -> tuple[Path, GgufTensor]:
        """Where in which file a tensor lies."""
        return self._tensors[tensor]

    def stage_digest(self, tensors: Iterable[str]) -> bytes:
        """8 bytes of the SHA-256 over these tensors as stored. Raises: BadCheckpoint."""
        return shards.digest_tensors({name: self.stored(name) for name in tensors})[:8]

    def kinds(self) -> str:
        """The types of matrices, those with the most bytes first, for people."""
        sizes: Counter[str] = Counter()
        for _, tensor in self._tensors.values():
            if len(tensor.shape) > 1:
                sizes[tensor.dtype] += tensor.stop - tensor.start
        return ", ".join(kind for kind, _ in sizes.most_common())

    def _vector(self, name: str) -> NDArray[np.float32]:
        if name not in self._entries:
            raise BadCheckpoint(f"{self.name}: no tensor {name}")
        path, entry = self._entries[name]
        if len(entry.shape) != 1 or entry.shape[0] > _FACTORS or TYPES[entry.type].values > 1:
            raise BadCheckpoint(f"{path}: {name} makes no sense")
        try:
            with path.open("rb") as file:
                file.seek(entry.start)
                raw = np.frombuffer(file.read(entry.stop - entry.start), np.uint8)
        except OSError as error:
            raise BadCheckpoint(f"{path}: cannot be read: {error.strerror}") from error
        return widen(entry.type, raw.reshape(1, -1)).reshape(-1)


def find_gguf(model: str) -> Path | None:
    """The GGUF file that `model` names: itself, or the only one (or the first part) of a folder without config.json.

    A file may be called anything, as those of Ollama are.

    Raises: ConfigError, where a folder has several.
    """
    path = Path(model).expanduser()
    if path.is_file():
        return path if path.suffix.lower() == SUFFIX or begins_like_gguf(path) else None
    if not path.is_dir() or (path / "config.json").exists():
        return None
    found = sorted(file for file in path.glob(f"*{SUFFIX}") if _is_first(file.name))
    if len(found) > 1:
        raise ConfigError(f"{model} has several GGUF files; name one of them, such as {found[0]}")
    return found[0] if found else None


def _is_first(name: str) -> bool:
    part = _PART.fullmatch(name)
    return part is None or int(part[2]) == 1


def _parts(path: Path, first: Header) -> Mapping[str, tuple[Path, Entry]]:
    """All tensors by name, with the part that has them. Raises: BadCheckpoint."""
    count: Any = first.metadata.get("split.count", 1)
    if type(count) is not int or not 0 <= count <= _PARTS:
        raise BadCheckpoint(f"{path}: is said to be in {str(count)[:40]} parts")
    found = {name: (path, entry) for name, entry in first.tensors.items()}
    if count < 2:
        return found
    part = _PART.fullmatch(path.name)
    if part is None or int(part[2]) != 1 or int(part[3]) != count:
        wanted = f"-00001-of-{count:05}{SUFFIX}"
        raise BadCheckpoint(f"{path}: is in {count} parts; name the first, which ends with {wanted}")
    for number in range(2, count + 1):
        other = path.with_name(f"{part[1]}-{number:05}-of-{count:05}{SUFFIX}")
        for name, entry in read_header(other).tensors.items():
            if name in found:
                raise BadCheckpoint(f"{other}: has {name}, which another part has too")
            found[name] = other, entry
    return found
