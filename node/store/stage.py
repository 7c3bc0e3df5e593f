"""The weights of one stage as a safetensors file, which is filled parcel by parcel and then gets its name.

Nothing half written is ever used: a file that is not whole has another name, and of what is in a file after a restart
only counts what hashes to what the inventory says.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import threading
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from node.engine.shards import StoredTensor
from protocol.errors import ConfigError
from protocol.files import write_whole
from protocol.inventory import Inventory, InventoryTensor, Parcel

WHOLE: Final = ".safetensors"
PART: Final = ".part"
INVENTORY: Final = ".inventory"
# Tensors lie where each can be mapped as what it is: the widest first, as safetensors' own writer has them.
_WIDTHS: Final = {"F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "BF16": 2, "F16": 2, "I16": 2}


class InUse(Exception):
    """Another process on this machine is writing the same file."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Where in its file each tensor of a stage begins, and the bytes before the first."""

    header: bytes
    starts: dict[str, int]
    size: int

    @classmethod
    def of(cls, inventory: Inventory) -> Layout:
        """The same for the same inventory, always."""
        ordered = sorted(inventory.tensors, key=lambda tensor: (-_WIDTHS.get(tensor.dtype, 1), tensor.name))
        offsets: dict[str, int] = {}
        entries: dict[str, Any] = {}
        end = 0
        for tensor in ordered:
            offsets[tensor.name], end = end, end + tensor.size
            entries[tensor.name] = {
                "dtype": tensor.dtype,
                "shape": tensor.shape,
                "data_offsets": [offsets[tensor.name], end],
            }
        text = json.dumps(entries, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        header = len(text).to_bytes(8, "little") + text
        return cls(header, {n: len(header) + start for n, start in offsets.items()}, len(header) + end)


@dataclass(frozen=True, slots=True)
class StagePaths:
    """The files of one stage: its number is there for people, its digest tells it from all others."""

    folder: Path
    stage: int
    digest: bytes

    def __call__(self, suffix: str) -> Path:
        """One of them."""
        return self.folder / f"{self.stage:04}-{self.digest.hex()}{suffix}"


class StageFile:
    """One stage on this disk, being fetched or whole. Blocking; `put` may be called by several threads."""

    def __init__(self, paths: StagePaths, inventory: Inventory) -> None:
        """Use `open`."""
        self.inventory = inventory
        self._paths = paths
        self._layout = Layout.of(inventory)
        self._parcels: dict[bytes, list[Parcel]] = {}
        for parcel in inventory.parcels():
            self._parcels.setdefault(parcel.hash, []).append(parcel)
        self._file = -1
        self._whole = False
        self._counting = threading.Lock()
        self.sizes = {hash_: parcels[0].size for hash_, parcels in self._parcels.items()}
        self._used = -1  # the inventory's file, which says by its lock that the stage is in use
        self.missing: set[bytes] = set(self._parcels)

    @classmethod
    def open(cls, paths: StagePaths, inventory: Inventory) -> StageFile:
        """The stage as it is on the disk, which is read and checked; a new file if there is none.

        It is in use until it is closed. Raises: InUse; ConfigError, one line, if the disk does not take it.
        """
        stage = cls(paths, inventory)
        try:
            stage._open()
        except BaseException:
            stage.close()
            raise
        return stage

    @property
    def missing_bytes(self) -> int:
        """What is not here."""
        return sum(self.sizes[parcel] for parcel in list(self.missing))

    @property
    def stage(self) -> int:
        """Which of the model's it is."""
        return self._paths.stage

    @property
    def path(self) -> Path:
        """Where it lies once it is whole."""
        return self._paths(WHOLE)

    def put(self, hash_: bytes, data: bytes) -> bool:
        """Keep a parcel that is missing, and has been checked; whether it was the last one.

        Raises: ConfigError, if the disk does not take it.
        """
        try:
            for parcel in self._parcels[hash_]:
                _write_at(self._file, data, self._layout.starts[parcel.tensor] + parcel.start)
        except OSError as error:
            raise _disk(self._paths.folder, error) from error
        with self._counting:
            last = self.missing == {hash_}
            self.missing.discard(hash_)
            return last

    def read(self, hash_: bytes) -> bytes:
        """A parcel that is here. Raises: OSError."""
        parcel = self._parcels[hash_][0]
        return os.pread(self._file, parcel.size, self._layout.starts[parcel.tensor] + parcel.start)

    def finish(self) -> None:
        """All parcels are here: it is whole from now on, and nothing more is read or put by this object.

        Raises: ConfigError, if the disk does not take it.
        """
        try:
            if not self._whole:
                os.fsync(self._file)
                os.replace(self._paths(PART), self.path)
                self._whole = True
        except OSError as error:
            raise _disk(self._paths.folder, error) from error
        self._close_file()

    def stored(self) -> dict[str, tuple[Path, StoredTensor]]:
        """Its tensors, once it is whole."""
        return {
            tensor.name: (self.path, _stored(tensor, self._layout.starts[tensor.name]))
            for tensor in self.inventory.tensors
        }

    def close(self) -> None:
        """It is not in use any more. Safe to call again."""
        self._close_file()
        if self._used >= 0:
            os.close(self._used)
        self._used = -1

    def __enter__(self) -> StageFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # --- inside

    def _close_file(self) -> None:
        if self._file >= 0:
            os.close(self._file)
        self._file = -1

    def _open(self) -> None:
        folder, whole, part = self._paths.folder, self._paths(WHOLE), self._paths(PART)
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._mark_used()
            if whole.exists():
                self._file = os.open(whole, os.O_RDONLY)
                self._check()
                if not self.missing:
                    self._whole = True
                    return
                self._close_file()  # the disk has spoilt it: what is wrong is fetched again
                os.replace(whole, part)
            self._file = os.open(part, os.O_RDWR | os.O_CREAT, 0o600)
            _lock(self._file, part)
            if whole.exists():  # whoever held the lock has just finished it
                raise InUse(str(whole))
            self._check()
            if len(self.missing) == len(self._parcels):
                _write_at(self._file, self._layout.header, 0)
        except OSError as error:
            raise _disk(folder, error) from error

    def _mark_used(self) -> None:
        path = self._paths(INVENTORY)
        if not path.exists():
            write_whole(path, self.inventory.encode())
        self._used = os.open(path, os.O_RDONLY)
        fcntl.flock(self._used, fcntl.LOCK_SH)
        os.utime(path)

    def _check(self) -> None:
        """Find out which parcels are here."""
        size = os.fstat(self._file).st_size
        header = os.pread(self._file, len(self._layout.header), 0)
        if header != self._layout.header:
            self.missing = set(self._parcels)
            return
        self.missing = {hash_ for hash_, parcels in self._parcels.items() if not self._has(parcels, size)}

    def _has(self, parcels: Collection[Parcel], size: int) -> bool:
        for parcel in parcels:
            start = self._layout.starts[parcel.tensor] + parcel.start
            if start + parcel.size > size:
                return False
            if hashlib.sha256(os.pread(self._file, parcel.size, start)).digest() != parcel.hash:
                return False
        return True


def read_inventory_file(path: Path, most: int) -> bytes:
    """The bytes of an inventory. Raises: OSError."""
    with path.open("rb") as file:
        return file.read(most + 1)


def stages_in(folder: Path) -> Iterator[Path]:
    """The inventories of the stages that lie in a folder."""
    return iter(sorted(folder.glob(f"*{INVENTORY}")))


def _stored(tensor: InventoryTensor, start: int) -> StoredTensor:
    return StoredTensor(tensor.dtype, tensor.shape, start, start + tensor.size, tensor.heads, tensor.raised)


def _lock(descriptor: int, path: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise InUse(str(path)) from None


def _write_at(descriptor: int, data: bytes, start: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(descriptor, view, start)
        view, start = view[written:], start + written


def _disk(folder: Path, error: OSError) -> ConfigError:
    return ConfigError(
        f"weights cannot be kept in {folder}: {error.strerror or error}; --cache-dir names another place"
    )
