"""The files of a checkpoint, without knowing what model they are: the small ones, and where which tensor lies."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from node.engine import shards, torchfiles
from node.engine.shards import StoredTensor
from node.engine.sources import Source
from protocol import limits
from protocol.errors import BadCheckpoint
from protocol.inventory import Inventory
from protocol.model import Manifest, ManifestFile

MODEL_FILES: Final = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "special_tokens_map.json",
)


class CheckpointFiles:
    """The small files, read; the names of all tensors; headers of weights as they are asked for."""

    def __init__(self, source: Source) -> None:
        """Reads the small files. Raises: BadCheckpoint, ConfigError."""
        self.source = source
        self.name = source.name
        self._files = self._read_files()
        self._shards = self._find_shards()
        self._headers: dict[Path, dict[str, StoredTensor]] = {}

    @property
    def tensors(self) -> Iterable[str]:
        """The names of all tensors of the checkpoint."""
        return self._shards.keys()

    def file(self, name: str) -> bytes:
        """The bytes of a small file. Raises: KeyError, if there is none of that name."""
        return self._files[name]

    def manifest(self, blocks: int, hidden_size: int, vocab_size: int, context: int) -> Manifest:
        """What the nodes of this model agree on."""
        sizes = blocks, hidden_size, vocab_size, context
        return make_manifest(self._files, self._shards, sizes)

    def has(self, tensors: Iterable[str]) -> bool:
        """Whether the files of these tensors are on this machine already; fetches nothing."""
        return all(self.source.has(file) for file in {self._shards[name] for name in tensors})

    def path(self, tensor: str) -> Path:
        """The file that a tensor is in, fetched if need be. Raises: BadCheckpoint, naming a missing file."""
        file = self._shards[tensor]
        path = self.source.find(file)
        if path is None:
            raise BadCheckpoint(f"{self.name}: {file} is missing, which holds {tensor}")
        return path

    def stored(self, tensor: str) -> tuple[Path, StoredTensor]:
        """Where in which file a tensor lies. Raises: BadCheckpoint."""
        path = self.path(tensor)
        if path not in self._headers:
            bin_ = self._shards[tensor].endswith(torchfiles.SUFFIX)
            self._headers[path] = (torchfiles if bin_ else shards).read_header(path)
        found = self._headers[path].get(tensor)
        if found is None:
            raise BadCheckpoint(f"{path}: has no tensor {tensor}, though the index says so")
        return path, found

    def parts(self, tensors: Iterable[str]) -> dict[str, tuple[Path, StoredTensor]]:
        """Where all that these tensors are made from lies, by its names in the files. Raises: BadCheckpoint."""
        return {name: self.stored(name) for name in tensors}

    def stored_dtype(self) -> str | None:
        """The dtype of most of the tensors that were looked at, as safetensors names it."""
        seen = Counter(tensor.dtype for header in self._headers.values() for tensor in header.values())
        return seen.most_common(1)[0][0] if seen else None

    def inventory(self, tensors: Iterable[str]) -> Inventory:
        """What all that these tensors are made from is as it is stored; reads it. Raises: BadCheckpoint."""
        return shards.take_inventory(self.parts(tensors))

    def kinds(self) -> str:
        """See `node.formats.files`: nothing is said of plain tensors."""
        return ""

    def _read_files(self) -> dict[str, bytes]:
        files = {}
        for name in MODEL_FILES:
            path = self.source.find(name)
            if path is not None:
                files[name] = path.read_bytes()
            elif name == "config.json":
                raise BadCheckpoint(
                    f"{self.name}: no config.json, so this is no model of transformers' format"
                )
        return files

    def _find_shards(self) -> dict[str, str]:
        """Tensor name -> file name, for the whole checkpoint."""
        for name, suffix in ((shards.INDEX_FILE, shards.SUFFIX), (torchfiles.INDEX_FILE, torchfiles.SUFFIX)):
            if (index := self.source.find(name)) is not None:
                return shards.parse_index(index.read_bytes(), f"{self.name}/{name}", suffix)
            if suffix == shards.SUFFIX and (names := self.source.tensor_names(shards.SINGLE_FILE)):
                return dict.fromkeys(names, shards.SINGLE_FILE)
        single = self.source.find(torchfiles.SINGLE_FILE)
        if single is None:
            wanted = f"neither {shards.SINGLE_FILE} nor {torchfiles.SINGLE_FILE}, nor an index of several"
            raise BadCheckpoint(f"{self.name}: {wanted}; weights in other formats are not read")
        return dict.fromkeys(torchfiles.read_header(single), torchfiles.SINGLE_FILE)


def make_manifest(
    files: Mapping[str, bytes], tensors: Iterable[str], sizes: tuple[int, int, int, int]
) -> Manifest:
    """Of small files and the names of all tensors; sizes: blocks, hidden size, vocabulary and context."""
    blocks, hidden_size, vocab_size, context = sizes
    entries = tuple(ManifestFile(n, len(data), hashlib.sha256(data).digest()) for n, data in files.items())
    context = min(context, limits.SESSION_TOKENS)
    return Manifest(blocks, hidden_size, vocab_size, context, shards.names_digest(tensors), entries)
