"""Files that torch.save wrote (.bin), seen from outside: where which tensor lies. Neither torch nor a pickle is run.

Format: a zip archive of uncompressed files: NAME/data.pkl, a dictionary of tensors, and NAME/data/KEY, the numbers.
"""

from __future__ import annotations

import math
import os
import struct
import zipfile
from pathlib import Path
from typing import IO, Final

from node.engine.shards import StoredTensor
from node.engine.state_dict import Tensor, read_state_dict
from protocol.errors import BadCheckpoint

SUFFIX: Final = ".bin"
SINGLE_FILE: Final = "pytorch_model.bin"
INDEX_FILE: Final = "pytorch_model.bin.index.json"
# Of 100,000 tensors, three times over.
_PICKLE_BYTES: Final = 1 << 25
_DIRECTORY_BYTES: Final = 1 << 25
_LOCAL: Final = b"PK\x03\x04"
_LOCAL_HEADER: Final = struct.Struct("<4s22xHH")  # its signature, and the lengths of name and extra bytes
_END: Final = struct.Struct("<4s8xI4xH")  # its signature, the directory's size, the comment's
_END_64: Final = struct.Struct("<4s36xQ")
_LOCATOR: Final = struct.Struct("<4s4xQ4x")
_ITEM_BYTES: Final = {
    "F64": 8,
    "F32": 4,
    "F16": 2,
    "BF16": 2,
    "BOOL": 1,
    "I64": 8,
    "I32": 4,
    "I16": 2,
    "I8": 1,
    "U8": 1,
}


def read_header(path: Path) -> dict[str, StoredTensor]:
    """Every tensor of the file by name; reads no numbers. Raises: BadCheckpoint, naming the file."""
    try:
        with path.open("rb") as file:
            _check_end(file)
            return _read(file)
    except OSError as error:
        raise BadCheckpoint(f"{path}: cannot be read: {error.strerror or error}") from error
    except (struct.error, EOFError) as error:
        raise BadCheckpoint(f"{path}: cut off") from error
    except (ValueError, OverflowError, RuntimeError, zipfile.BadZipFile) as error:
        raise BadCheckpoint(f"{path}: {error}") from error


def _check_end(file: IO[bytes]) -> None:
    """That it is a zip archive whose directory is of a size to be read. Raises: ValueError."""
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    if file.read(4) != _LOCAL:
        raise ValueError(
            "no zip archive, which torch writes since version 1.6: save it anew, best as safetensors"
        )
    signature, directory, comment = _END.unpack(_piece(file, size - _END.size, _END.size))
    if signature != b"PK\x05\x06" or comment:
        raise ValueError("cut off, or a zip archive with a comment")
    if directory == 0xFFFFFFFF:
        signature, at = _LOCATOR.unpack(_piece(file, size - _END.size - _LOCATOR.size, _LOCATOR.size))
        signature, directory = _END_64.unpack(_piece(file, at, _END_64.size))
    if directory > _DIRECTORY_BYTES:
        raise ValueError(f"a zip archive with a directory of {directory} bytes")


def _piece(file: IO[bytes], at: int, size: int) -> bytes:
    file.seek(max(0, at))
    return file.read(size)


def _read(file: IO[bytes]) -> dict[str, StoredTensor]:
    with zipfile.ZipFile(file) as archive:
        members = {info.filename: info for info in archive.infolist()}
        pickles = [name for name in members if name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise ValueError(f"{len(pickles)} files named data.pkl in the archive, where one belongs")
        folder = pickles[0].removesuffix("data.pkl")
        if not _is_plain(members[pickles[0]]) or members[pickles[0]].file_size > _PICKLE_BYTES:
            raise ValueError("data.pkl is compressed, or too large")
        order = members.get(f"{folder}byteorder")
        if order is not None and (order.file_size != 6 or archive.read(order) != b"little"):
            raise ValueError("its numbers have their bytes the other way round")
        tensors = read_state_dict(archive.read(members[pickles[0]]))
    starts: dict[str, int] = {}
    found = {}
    for name, tensor in tensors.items():
        key = tensor.storage.key
        info = members.get(f"{folder}data/{key}")
        if info is None or not _is_plain(info):
            raise ValueError(f"{name[:80]} is in data/{key[:80]}, which is missing or compressed")
        if key not in starts:
            starts[key] = _start(file, info)
        found[name] = _stored(name, tensor, starts[key], info.file_size)
    return found


def _is_plain(info: zipfile.ZipInfo) -> bool:
    stored = info.compress_type == zipfile.ZIP_STORED and info.file_size == info.compress_size
    return stored and not info.flag_bits & 1


def _start(file: IO[bytes], info: zipfile.ZipInfo) -> int:
    """Where the bytes of a member begin, which all are in the file. Raises: ValueError."""
    signature, name, extra = _LOCAL_HEADER.unpack(_piece(file, info.header_offset, _LOCAL_HEADER.size))
    start = info.header_offset + _LOCAL_HEADER.size + name + extra
    if signature != _LOCAL or info.header_offset < 0 or start + info.file_size > file.seek(0, os.SEEK_END):
        raise ValueError(f"cut off: {info.filename[:80]!r} is not where the archive says")
    return int(start)


def _stored(name: str, tensor: Tensor, start: int, size: int) -> StoredTensor:
    item, count = _ITEM_BYTES[tensor.storage.dtype], math.prod(tensor.shape)
    if (tensor.offset + count) * item > min(size, tensor.storage.count * item):
        raise ValueError(f"{name[:80]} goes beyond its {size} bytes")
    step = 1
    for length, stride in zip(reversed(tensor.shape), reversed(tensor.strides), strict=True):
        if length > 1 and count and stride != step:
            raise ValueError(f"{name[:80]} has its rows apart: save it as safetensors")
        step *= length
    first = start + tensor.offset * item
    return StoredTensor(tensor.storage.dtype, tensor.shape, first, first + count * item)
