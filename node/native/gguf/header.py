"""What stands before the weights of a GGUF file: metadata and a table of tensors. Nothing in it is believed.

Format: "GGUF", a version, two counts, pairs of key and value, one entry per tensor, padding, the tensors' bytes; all
little-endian (ggml's docs/gguf.md).
"""

from __future__ import annotations

import math
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from node.native.gguf.quants import TYPES
from protocol.errors import BadCheckpoint

_MAGIC: Final = b"GGUF"
_VERSIONS: Final = (2, 3)
# The largest vocabularies in use come with 20 MB of tokens and merges.
HEADER_BYTES: Final = 128 << 20
_PAIRS: Final = 1 << 14
_TENSORS: Final = 1 << 16
# Strings of all arrays together: as objects they take more memory than in the file.
_STRINGS: Final = 1 << 22
_NAME_BYTES: Final = 1 << 10
_DIMENSIONS: Final = 4
_STRING, _ARRAY, _BOOL = 8, 9, 7
_NUMBERS: Final = {
    0: "<u1", 1: "<i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "|b1", 10: "<u8", 11: "<i8", 12: "<f8",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Entry:
    """Where one tensor lies: its type's name, its shape with rows first, bytes from the beginning of the file."""

    type: str
    shape: tuple[int, ...]
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Header:
    """Metadata by key (numbers, text, lists of text, arrays of numbers), and tensors by name."""

    metadata: dict[str, Any]
    tensors: dict[str, Entry]


def read_header(path: Path) -> Header:
    """The header of a file; its weights are not touched. Raises: BadCheckpoint, naming the file."""
    try:
        with (
            path.open("rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped,
            memoryview(mapped) as view,
        ):
            return _Reader(view, len(view)).header()
    except OSError as error:
        raise BadCheckpoint(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise BadCheckpoint(f"{path}: no GGUF file that can be read: {error}") from error


def parse_header(beginning: bytes, size_bytes: int, where: str) -> Header | None:
    """The header of a file of this size, of which this is the beginning; None if it goes on behind that.

    Raises: BadCheckpoint, which names `where` it is from.
    """
    try:
        return _Reader(memoryview(beginning), size_bytes).header()
    except _GoesOn:
        return None
    except ValueError as error:
        raise BadCheckpoint(f"{where}: no GGUF file that can be read: {error}") from error


def begins_like_gguf(path: Path) -> bool:
    """Whether the first bytes of a file are those of a GGUF file."""
    try:
        with path.open("rb") as file:
            return file.read(len(_MAGIC)) == _MAGIC
    except OSError:
        return False


class _GoesOn(ValueError):
    """The header, behind what there is of the file."""


class _Reader:
    """A place in a header that moves on, in a file of `size_bytes`. Its methods raise ValueError."""

    def __init__(self, view: memoryview, size_bytes: int) -> None:
        self._view = view
        self._size_bytes = size_bytes
        self._end = min(size_bytes, HEADER_BYTES)
        self._at = 0
        self._strings = 0

    def header(self) -> Header:
        """All of it."""
        if bytes(self._take(4)) != _MAGIC:
            raise ValueError("it does not begin with GGUF")
        version, tensors, pairs = self._unpack("<IQQ")
        if version not in _VERSIONS:
            raise ValueError(f"version {version}")
        if pairs > _PAIRS or tensors > _TENSORS:
            raise ValueError(f"{pairs} fields and {tensors} tensors")
        metadata: dict[str, Any] = {}
        for _ in range(pairs):
            key = self._name()
            if key in metadata:
                raise ValueError(f"{key} is there twice")
            metadata[key] = self._value()
        entries = [self._entry() for _ in range(tensors)]
        alignment = metadata.get("general.alignment", 32)
        if type(alignment) is not int or not 1 <= alignment <= 1 << 16 or alignment % 8:
            raise ValueError(f"an alignment of {str(alignment)[:40]}")
        base = -(-self._at // alignment) * alignment
        return Header(metadata, self._place(entries, base, alignment))

    def _place(
        self, entries: list[tuple[str, str, tuple[int, ...], int]], base: int, alignment: int
    ) -> dict[str, Entry]:
        found: dict[str, Entry] = {}
        for name, kind, shape, offset in entries:
            type_ = TYPES[kind]
            if name in found:
                raise ValueError(f"the tensor {name} is there twice")
            if offset % alignment or shape[-1] % type_.values:
                raise ValueError(f"the place or the shape of {name} makes no sense")
            start = base + offset
            stop = start + math.prod(shape) // type_.values * type_.size
            if stop > self._size_bytes:
                raise ValueError(f"cut off: {self._size_bytes} bytes of at least {stop}")
            found[name] = Entry(kind, shape, start, stop)
        return found

    def _entry(self) -> tuple[str, str, tuple[int, ...], int]:
        name = self._name()
        (count,) = self._unpack("<I")
        if not 1 <= count <= _DIMENSIONS:
            raise ValueError(f"{name} has {count} dimensions")
        shape = self._unpack(f"<{count}Q")[::-1]
        number, offset = self._unpack("<IQ")
        kind = next((kind for kind, type_ in TYPES.items() if type_.number == number), None)
        if kind is None:
            raise ValueError(f"{name} is of type {number}, which is not read")
        if min(shape) < 1 or math.prod(shape) > 1 << 48 or offset > 1 << 48:
            raise ValueError(f"the place or the shape of {name} makes no sense")
        return name, kind, shape, offset

    def _value(self) -> Any:
        (kind,) = self._unpack("<I")
        if kind == _STRING:
            return self._string()
        if kind != _ARRAY:
            return self._numbers(kind, 1)[0].item()
        kind, count = self._unpack("<IQ")
        if kind != _STRING:
            return self._numbers(kind, count)
        self._strings += count
        if self._strings > _STRINGS:
            raise ValueError("more strings than any model has")
        return [self._string() for _ in range(count)]

    def _numbers(self, kind: int, count: int) -> np.ndarray[Any, Any]:
        if kind not in _NUMBERS:
            raise ValueError(f"a value of type {kind}, or a list of lists")
        dtype = np.dtype(_NUMBERS[kind])
        raw = bytes(self._take(count * dtype.itemsize))
        values: np.ndarray[Any, Any] = np.frombuffer(raw, np.uint8 if kind == _BOOL else dtype)
        return values != 0 if kind == _BOOL else values

    def _name(self) -> str:
        name = self._string(_NAME_BYTES)
        if not name.isprintable():
            raise ValueError("a name that cannot be printed")
        return name

    def _string(self, most: int = HEADER_BYTES) -> str:
        (length,) = self._unpack("<Q")
        if length > most:
            raise ValueError(f"a string of {length} bytes")
        # Some vocabularies hold tokens that are no UTF-8; the model has to be served all the same.
        return str(self._take(length), "utf-8", "replace")

    def _unpack(self, form: str) -> tuple[Any, ...]:
        return struct.unpack(form, self._take(struct.calcsize(form)))

    def _take(self, size: int) -> memoryview:
        if size > self._end - self._at:
            raise ValueError("cut off, or a size in it is a lie")
        if size > len(self._view) - self._at:
            raise _GoesOn
        self._at += size
        return self._view[self._at - size : self._at]
