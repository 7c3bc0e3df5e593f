"""Safetensors files seen from outside: their headers, the index over several, raw bytes of single tensors.

Format: 8 bytes little-endian header length, a JSON header, the tensors' bytes
(the safetensors format specification).
"""

from __future__ import annotations

import hashlib
import json
import math
import mmap
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from protocol.errors import BadCheckpoint

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


def digest_tensors(places: Mapping[str, tuple[Path, StoredTensor]]) -> bytes:
    """SHA-256 over tensors in the order of their names: name, dtype, shape and raw bytes as stored.

    Each of the four is preceded by its length, so that no two sets of tensors share an encoding. Only the bytes
    of these tensors are read.
    """
    hasher = hashlib.sha256()
    for name in sorted(places):
        path, tensor = places[name]
        shape = ",".join(str(n) for n in tensor.shape)
        for text in (name, tensor.dtype, shape):
            raw = text.encode()
            hasher.update(len(raw).to_bytes(8, "little") + raw)
        hasher.update((tensor.stop - tensor.start).to_bytes(8, "little"))
        _hash_range(hasher, path, tensor)
    return hasher.digest()


def _hash_range(hasher: Any, path: Path, tensor: StoredTensor) -> None:
    """Feeds a tensor's bytes to the hasher through a mapping that is dropped at once, so memory does not grow."""
    if tensor.start == tensor.stop:
        return
    first = tensor.start - tensor.start % mmap.ALLOCATIONGRANULARITY
    try:
        with (
            path.open("rb") as file,
            mmap.mmap(file.fileno(), tensor.stop - first, access=mmap.ACCESS_READ, offset=first) as mapped,
            memoryview(mapped) as view,
            view[tensor.start - first :] as data,
        ):
            hasher.update(data)
    except OSError as error:
        raise BadCheckpoint(f"{path}: cannot be read: {error.strerror}") from error


def names_digest(names: Iterable[str]) -> bytes:
    """SHA-256 over sorted tensor names joined by newlines, as `protocol.model.Manifest` wants it."""
    return hashlib.sha256("\n".join(sorted(names)).encode()).digest()
