"""What weights this node has to give: inventories by stage digest, and where in which file each parcel lies."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from protocol.errors import Lost
from protocol.inventory import Inventory


@dataclass(frozen=True, slots=True)
class Place:
    """Some bytes of a file."""

    path: Path
    start: int
    size: int

    def read(self) -> bytes:
        """The bytes. Blocks. Raises: Lost, if they are not there any more."""
        try:
            with self.path.open("rb", buffering=0) as file:
                data = os.pread(file.fileno(), self.size, self.start)
        except OSError as error:
            raise Lost(f"weights cannot be read: {error}") from error
        if len(data) != self.size:
            raise Lost(f"weights cannot be read: {self.path} has become shorter")
        return data


class Shelf:
    """Of one model. Nothing is taken off it while the node runs."""

    def __init__(self, model: bytes, stages: int) -> None:
        self.model = model
        self.stages: list[bytes | None] = [None] * stages  # the digest of each that is here
        self._inventories: dict[bytes, bytes] = {}
        self._places: dict[bytes, Place] = {}

    def __len__(self) -> int:
        return sum(digest is not None for digest in self.stages)

    def put(self, stage: int, inventory: Inventory, starts: Mapping[str, tuple[Path, int]]) -> None:
        """A stage is here. starts: of each tensor, its file, and where in it the tensor begins."""
        digest = inventory.digest
        for parcel in inventory.parcels():
            path, start = starts[parcel.tensor]
            self._places.setdefault(parcel.hash, Place(path, start + parcel.start, parcel.size))
        self._inventories[digest] = inventory.encode()
        self.stages[stage] = digest

    def inventory(self, digest: bytes) -> bytes | None:
        """The bytes of the inventory of a stage that is here."""
        return self._inventories.get(digest)

    def place(self, parcel: bytes) -> Place | None:
        """Where a parcel lies that is here."""
        return self._places.get(parcel)
