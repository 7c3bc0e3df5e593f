"""What names the rows that crossed a boundary: a mark for each, over itself and all before it. Pure.

Both ends of a boundary come to the same marks by what crossed it and nothing else. So a mark that a hop knows
names the same rows to it as to whoever says it, and nobody can have it name others.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Final

from protocol.tensors import Tensor

MARK_BYTES: Final = 32
_PERSON: Final = b"swarm trail 1"


def first_mark(model: bytes, stage: int) -> bytes:
    """The mark of no rows, at the boundary where `stage` of the model with this digest begins."""
    return _hash(model + stage.to_bytes(4, "big")).digest()


def marks_of(before: bytes, rows: Tensor) -> Iterator[bytes]:
    """The mark after each row, `before` being the one before the first.

    A mark is the hash over the mark before, the dtype's name and the row's bytes. Hashing takes about 1 ms a MiB.
    """
    dtype = rows.dtype.encode().rjust(4)
    row_bytes = len(rows.data) // rows.rows if rows.rows else 0
    data = memoryview(rows.data)
    mark = before
    for start in range(0, len(data), row_bytes or 1):
        state = _hash(mark + dtype)
        state.update(data[start : start + row_bytes])
        mark = state.digest()
        yield mark


class Trail:
    """The marks of all rows that crossed one boundary and still stand."""

    def __init__(self, first: bytes) -> None:
        self._marks = bytearray(first)

    @property
    def length(self) -> int:
        """Rows that it has marks of."""
        return len(self._marks) // MARK_BYTES - 1

    def mark(self, position: int) -> bytes:
        """The mark of the rows below `position`."""
        return bytes(self._marks[position * MARK_BYTES : (position + 1) * MARK_BYTES])

    def marks(self, start: int, stop: int) -> tuple[bytes, ...]:
        """The mark after each row of start:stop."""
        return tuple(self.mark(position) for position in range(start + 1, stop + 1))

    def cut(self, length: int) -> None:
        """Forget the rows from `length` on."""
        del self._marks[(length + 1) * MARK_BYTES :]

    def fork(self, length: int) -> Trail:
        """Another one, that begins with the first `length` rows."""
        other = Trail(self.mark(0))
        other._marks = self._marks[: (length + 1) * MARK_BYTES]
        return other

    def append(self, marks: Sequence[bytes]) -> None:
        """Rows crossed that have these marks."""
        self._marks += b"".join(marks)

    def extend(self, rows: Tensor) -> None:
        """These rows crossed."""
        self.append(list(marks_of(self.mark(self.length), rows)))


def _hash(data: bytes) -> hashlib.blake2b:
    return hashlib.blake2b(data, digest_size=MARK_BYTES, person=_PERSON)
