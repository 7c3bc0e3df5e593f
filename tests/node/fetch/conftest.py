"""Stages made up, on disks of peers and of ours."""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass
from pathlib import Path

import pytest

from node.store.stage import StageFile, StagePaths
from protocol import limits
from protocol.inventory import Inventory, InventoryTensor, make_inventory

MIB = limits.PARCEL_BYTES


@dataclass(frozen=True)
class Stage:
    """A stage and its bytes."""

    inventory: Inventory
    parcels: dict[bytes, bytes]

    @property
    def digest(self) -> bytes:
        """Of the stage."""
        return self.inventory.digest

    def file(self, folder: Path, number: int = 0) -> StageFile:
        """On a disk, as far as it is there."""
        return StageFile.open(StagePaths(folder, number, self.digest), self.inventory)

    def whole(self, folder: Path, number: int = 0) -> StageFile:
        """All of it on a disk."""
        file = self.file(folder, number)
        for parcel in list(file.missing):
            file.put(parcel, self.parcels[parcel])
        file.finish()
        return file


def make_stage(sizes: dict[str, int], seed: int = 1, dtype: str = "U8") -> Stage:
    """Tensors of so many random bytes."""
    rng = random.Random(seed)
    tensors: dict[InventoryTensor, list[bytes]] = {}
    parcels: dict[bytes, bytes] = {}
    for name, size in sizes.items():
        data = rng.randbytes(size)
        cut = [data[start : start + MIB] for start in range(0, size, MIB)]
        tensors[InventoryTensor(name, dtype, (size,), size)] = [hashlib.sha256(each).digest() for each in cut]
        parcels.update((hashlib.sha256(each).digest(), each) for each in cut)
    return Stage(make_inventory(tensors), parcels)


@pytest.fixture
def stage() -> Stage:
    """Nine parcels in four tensors, of all lengths."""
    return make_stage({"a": 3 * MIB, "b": 5, "c": 2 * MIB + 1, "d": MIB - 1, "e": 0, "f": 7})
