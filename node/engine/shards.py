"""Safetensors files seen from outside: their headers, the index over several, raw bytes of single tensors.

Format: 8 bytes little-endian header length, a JSON header, the tensors' bytes
(the safetensors format specification).
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from protocol import limits
from protocol.errors import BadCheckpoint
from protocol.inventory import Inventory, InventoryTensor, make_inventory

SUFFIX: Final = ".safetensors"
SINGLE_FILE: Final = "model.safetensors"
INDEX_FILE: Final = "model.safetensors.index.json"
# The format's own limit on a header.
_HEADER_BYTES: Final = 100_000_000


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Where one tensor lies in a file."""

    dtype: str  # as safetensors names it: "F32", "BF16", ...
    shape: tuple[int, ...]
    start: int  # bytes from the beginning of the file
    stop: int
    heads: int = (
        0  # of so many heads each has its rows in pairs that turn together; 0: they lie as they should
    )
    raised: bool = False  # one was added to every number


def read_header(path: Path) -> dict[str, StoredTensor]:
    """Every tensor of the file by name; reads the header only. Raises: BadCheckpoint, naming the file."""
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= min(_HEADER_BYTES, size - 8):
                raise ValueError("the file is cut off or no safetensors file")
            header = json.loads(file.read(length))
        tensors = {
            name: _stored(entry, 8 + length) for name, entry in header.items() if name != "__metadata__"
        }
    except OSError as error:
        raise BadCheckpoint(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise BadCheckpoint(f"{path}: corrupt safetensors header: {error}") from error
    end = max((tensor.stop for tensor in tensors.values()), default=0)
    if end > size:
        raise BadCheckpoint(f"{path}: cut off: {size} bytes of at least {end}")
    return tensors


def _stored(entry: Any, base: int) -> StoredTensor:
    start, stop = entry["data_offsets"]
    shape = tuple(entry["shape"])
    whole = all(type(n) is int and n >= 0 for n in (start, stop, *shape))
    if not whole or start > stop or not isinstance(entry["dtype"], str):
        raise ValueError("a tensor's entry makes no sense")
    if stop - start < math.prod(shape) // 2:  # no dtype in use has less than four bits
        raise ValueError("a tensor has fewer bytes than its shape needs")
    return StoredTensor(entry["dtype"], shape, base + start, base + stop)


def parse_index(data: bytes, where: str, suffix: str = SUFFIX) -> dict[str, str]:
    """Tensor name -> file name, from an index file's bytes. Raises: BadCheckpoint, naming `where`.

    suffix: what the names of all files end with.
    """
    try:
        files = json.loads(data)["weight_map"]
        pairs = dict(files.items())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadCheckpoint(f"{where}: not an index of {suffix} files: {error!r}") from error
    for name, file in pairs.items():
        # An index names files beside itself, nothing else on this machine.
        plain = isinstance(file, str) and file.endswith(suffix) and not set(file) & set("/\\\0")
        if not plain or file.startswith("."):
            raise BadCheckpoint(f"{where}: {name} is said to be in {file!r}, which is no {suffix} file")
    return pairs


def take_inventory(places: Mapping[str, tuple[Path, StoredTensor]]) -> Inventory:
    """What these tensors are as they are stored, with the hashes of their parcels.

    Only their bytes are read. Raises: BadCheckpoint, also for a name or a shape that no inventory holds.
    """
    found: dict[InventoryTensor, list[bytes]] = {}
    for name, (path, tensor) in places.items():
        if len(name.encode()) > limits.TENSOR_NAME_BYTES or len(tensor.shape) > limits.TENSOR_DIMENSIONS:
            raise BadCheckpoint(f"{path}: a tensor's name or shape is too long: {name[:40]}")
        entry = InventoryTensor(
            name, tensor.dtype, tensor.shape, tensor.stop - tensor.start, tensor.heads, tensor.raised
        )
        found[entry] = [hashlib.sha256(part).digest() for part in read_parcels(path, tensor)]
    return make_inventory(found)


def read_parcels(path: Path, tensor: StoredTensor) -> Iterator[bytes]:
    """A tensor's bytes as stored, a parcel at a time. Raises: BadCheckpoint, also where the file ends before it."""
    try:
        with path.open("rb", buffering=0) as file:
            for start in range(tensor.start, tensor.stop, limits.PARCEL_BYTES):
                size = min(limits.PARCEL_BYTES, tensor.stop - start)
                data = os.pread(file.fileno(), size, start)
                if len(data) != size:
                    raise BadCheckpoint(f"{path}: has become shorter")
                yield data
    except OSError as error:
        raise BadCheckpoint(f"{path}: cannot be read: {error.strerror}") from error


def names_digest(names: Iterable[str]) -> bytes:
    """SHA-256 over sorted tensor names joined by newlines, as `protocol.model.Manifest` wants it."""
    return hashlib.sha256("\n".join(sorted(names)).encode()).digest()
