"""The marks of what crossed a boundary.

- A mark follows from the model, the stage, and the bytes and dtype of every row up to it; not from how they came.
- Whatever is other in any row gives other marks from there on.
- Both hands of a boundary, one that takes marks over and one that hashes rows, agree.
"""

from __future__ import annotations

import hashlib
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from protocol.tensors import ITEM_BYTES, Tensor, concat_rows
from protocol.trail import MARK_BYTES, Trail, first_mark, marks_of

FIRST = first_mark(bytes(32), 3)


@st.composite
def rows(draw: st.DrawFn, least: int = 0) -> Tensor:
    """Rows of three numbers, any bits."""
    dtype = draw(st.sampled_from(["f32", "bf16"]))
    count = draw(st.integers(least, 6))
    size = 3 * ITEM_BYTES[dtype] * count
    return Tensor(dtype, (count, 3), draw(st.binary(min_size=size, max_size=size)))


@given(rows(), st.lists(st.integers(0, 6), max_size=3))
def test_how_rows_come_does_not_matter(whole: Tensor, cuts: list[int]) -> None:
    """In one piece or several, after going back or not: the same marks."""
    trail, pieces = Trail(FIRST), Trail(FIRST)
    trail.extend(whole)
    ends = sorted(min(cut, whole.rows) for cut in cuts)
    for start, stop in pairwise([0, *ends, whole.rows]):
        pieces.extend(whole.row_slice(start, stop))
        pieces.cut(start)
        pieces.extend(whole.row_slice(start, stop))
    assert pieces.length == trail.length == whole.rows
    assert pieces.marks(0, whole.rows) == trail.marks(0, whole.rows) == tuple(marks_of(FIRST, whole))


@given(rows(least=1), st.data())
def test_every_bit_matters_from_there_on(whole: Tensor, data: st.DataObject) -> None:
    """Marks before a changed row are the same, those from it on are others."""
    at = data.draw(st.integers(0, len(whole.data) - 1))
    changed = bytearray(whole.data)
    changed[at] ^= 1
    row = at * whole.rows // len(whole.data)
    before = list(marks_of(FIRST, whole))
    after = list(marks_of(FIRST, Tensor(whole.dtype, whole.shape, bytes(changed))))
    assert before[:row] == after[:row]
    assert not set(before[row:]) & set(after[row:])


def test_the_place_and_the_dtype_matter() -> None:
    """The same bytes elsewhere, or as other numbers, have other marks."""
    floats, halves = Tensor("f32", (1, 2), bytes(8)), Tensor("bf16", (2, 2), bytes(8))
    marks = [
        *marks_of(FIRST, floats),
        *marks_of(first_mark(bytes(32), 4), floats),
        *marks_of(first_mark(bytes(31) + b"\1", 3), floats),
        list(marks_of(FIRST, halves))[-1],
        list(marks_of(FIRST, concat_rows([floats, floats])))[-1],
    ]
    assert len(set(marks)) == len(marks)


def test_a_mark_byte_by_byte() -> None:
    """As the document has it."""

    def hashed(data: bytes) -> bytes:
        return hashlib.blake2b(data, digest_size=32, person=b"swarm trail 1").digest()

    model = bytes(range(32))
    first = hashed(model + b"\0\0\0\3")
    assert first_mark(model, 3) == first
    assert list(marks_of(first, Tensor("i32", (2,), bytes(range(8))))) == [
        one := hashed(first + b" i32" + bytes(range(4))),
        hashed(one + b" i32" + bytes(range(4, 8))),
    ]
    assert len(first) == MARK_BYTES


def test_marks_that_are_taken_over() -> None:
    """They go on like those of rows that were seen."""
    whole = Tensor("f32", (4, 1), bytes(range(16)))
    seen, told = Trail(FIRST), Trail(FIRST)
    seen.extend(whole)
    told.append(seen.marks(0, 3))
    told.extend(whole.row_slice(3, 4))
    assert told.mark(4) == seen.mark(4)
    assert told.mark(0) == FIRST
