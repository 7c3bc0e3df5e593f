"""A model whose files came from peers, as a checkpoint: the small ones, and the stages that were fetched."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path

from node.engine.files import CheckpointFiles
from node.engine.shards import StoredTensor
from node.engine.sources import FolderSource
from node.native.gguf.architectures import GgufTensor
from node.native.gguf.quants import TYPES
from node.native.tensors import FLOATS
from protocol.errors import BadCheckpoint
from protocol.inventory import Inventory
from protocol.model import Manifest

Places = Mapping[str, tuple[Path, StoredTensor]]


class FetchedFiles(CheckpointFiles):
    """A checkpoint as far as it was fetched.

    stages: those that are whole and checked, and where their tensors lie.
    """

    def __init__(
        self,
        name: str,
        folder: Path,
        manifest: Manifest,
        contents: Mapping[str, bytes],
        stages: Mapping[int, tuple[Inventory, Places]] | None = None,
    ) -> None:
        """Raises: BadCheckpoint, if the stages do not fit what they say of themselves."""
        self.name = name
        self.source = FolderSource(folder)  # of the small files
        self._manifest = manifest
        self._files = dict(contents)
        self._inventories: dict[frozenset[str], Inventory] = {}
        self._places: dict[str, tuple[Path, StoredTensor]] = {}
        for inventory, places in (stages or {}).values():
            self._inventories[frozenset(places)] = inventory
            for tensor, (path, stored) in places.items():
                self._places.setdefault(tensor, (path, _as_read(path, tensor, stored)))

    @property
    def tensors(self) -> Iterable[str]:
        """The names of all tensors that are here; those of other stages are not known."""
        return self._places.keys()

    @property
    def of_gguf(self) -> bool:
        """Whether any tensor is kept as GGUF keeps it."""
        return any(isinstance(tensor, GgufTensor) for _, tensor in self._places.values())

    def manifest(self, blocks: int, hidden_size: int, vocab_size: int, context: int) -> Manifest:
        """What the nodes of this model agree on. Raises: BadCheckpoint, if its config.json says something else."""
        said = self._manifest
        if (said.blocks, said.hidden_size, said.vocab_size) != (blocks, hidden_size, vocab_size):
            raise BadCheckpoint(f"{self.name}: the manifest and config.json do not belong together")
        return said

    def has(self, tensors: Iterable[str]) -> bool:
        """Whether these are here; fetches nothing."""
        return set(tensors) <= self._places.keys()

    def path(self, tensor: str) -> Path:
        """The file that a tensor is in. Raises: BadCheckpoint, if it is not here."""
        return self.stored(tensor)[0]

    def stored(self, tensor: str) -> tuple[Path, StoredTensor]:
        """Where in which file a tensor lies. Raises: BadCheckpoint, if it is not here."""
        found = self._places.get(tensor)
        if found is None:
            raise BadCheckpoint(f"{self.name}: {tensor} is not among the weights that were fetched")
        return found

    def stored_dtype(self) -> str | None:
        """The dtype of the largest tensor that is here, as safetensors names it."""
        tensors = (tensor for _, tensor in self._places.values())
        largest = max(tensors, key=lambda tensor: math.prod(tensor.shape), default=None)
        return largest.dtype if largest is not None else None

    def inventory(self, tensors: Iterable[str]) -> Inventory:
        """What these tensors are as they are stored, as it was checked. Raises: BadCheckpoint, if it was not."""
        found = self._inventories.get(frozenset(tensors))
        if found is None:
            raise BadCheckpoint(f"{self.name}: a stage has other tensors than those that were fetched")
        return found


def _as_read(path: Path, name: str, tensor: StoredTensor) -> StoredTensor:
    """The same, as one of GGUF's if that is how it is stored. Raises: BadCheckpoint."""
    kind = TYPES.get(tensor.dtype)
    if not (tensor.heads or tensor.raised) and (kind is None or tensor.dtype in FLOATS):
        return tensor
    count, size = math.prod(tensor.shape), tensor.stop - tensor.start
    if kind is None or count % kind.values or count // kind.values * kind.size != size:
        raise BadCheckpoint(f"{path}: {name} has another size than its shape needs")
    return GgufTensor(tensor.dtype, tensor.shape, tensor.start, tensor.stop, tensor.heads, tensor.raised)
