"""What sessions computed, kept for those that begin alike. Pure: knows marks, counts bytes, moves nothing.

What is kept are *passages*: up to a page of rows that followed on certain others, with their keys and values and,
where the span does not end with the head, the rows that left. A passage is found by the marks of what entered
(`protocol.trail`), so what a session is given follows from what it brings and from nothing else.

Prefixes are found at every GRAIN positions only. To the token, whoever guesses at what others have asked would be
told of each token whether it was right; so a whole grain has to be right at once.

Passages form a tree, for sessions part where they differ. There is room for so many bytes; where more is asked for,
of the origin that has the most the passage goes that was longest of no use and that no other follows on, so what is
left always reaches back to position 0. What a session is about to begin with is borrowed, and stays meanwhile.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from node.compute.interfaces import PAGE_POSITIONS, KvPage
from protocol.model import Span
from protocol.tensors import Tensor, concat_rows

# What is not found is computed: up to so many rows, which cost about two of a decode step. What has to be guessed at
# once is beyond what can be tried, but where all of it is known besides a few digits.
GRAIN: Final = 32
# What a row takes besides its bytes: two marks, and its part of the entries by which they are found (measured).
ROW_OVERHEAD_BYTES: Final = 200


@dataclass(slots=True, eq=False)
class Passage:
    """Whole grains of rows from position `start` on that follow on those of `before`, a whole page; `origin` is whose
    they were."""

    span: Span
    start: int
    before: Passage | None
    marks: tuple[bytes, ...]  # after each row, as it entered
    left: tuple[bytes, ...]  # after each row, as it left; none where the head is
    rows: Tensor | None  # as they left
    page: KvPage | None  # None where the span has no blocks
    origin: str
    following: int = field(default=0, init=False)  # passages
    borrowed: int = field(default=0, init=False)

    @property
    def stop(self) -> int:
        """The position after its last row."""
        return self.start + len(self.marks)

    @property
    def nbytes(self) -> int:
        """Memory that it takes."""
        page_bytes = 0 if self.page is None else self.page.nbytes
        row_bytes = 0 if self.rows is None else len(self.rows.data)
        return page_bytes + row_bytes + ROW_OVERHEAD_BYTES * len(self.marks)


@dataclass(frozen=True, slots=True)
class Prefix:
    """Positions 0 to `length`, the last of them in `passage`."""

    passage: Passage
    length: int

    def cut(self, length: int) -> Prefix | None:
        """The first `length` positions of it; None if there are none."""
        return next((Prefix(each, length) for each in self._back() if each.start < length), None)

    def pages(self) -> list[KvPage]:
        """Its keys and values, in order; the last page may hold more."""
        return [each.page for each in self._back() if each.page is not None][::-1]

    def mark(self, position: int) -> bytes:
        """The mark of the rows below `position`, which is not 0, as they entered."""
        return next(each.marks[position - each.start - 1] for each in self._back() if each.start < position)

    def marks(self, start: int) -> list[bytes]:
        """The mark after each position from `start` on, as they entered."""
        return [self.mark(position) for position in range(start + 1, self.length + 1)]

    @property
    def left(self) -> bytes:
        """The mark of all its rows as they left; empty where the head is."""
        return self.passage.left[self.length - self.passage.start - 1] if self.passage.left else b""

    def rows(self, start: int) -> Tensor | None:
        """What left of positions `start` to `length`, in memory of its own; None where the head is."""
        parts = []
        for each in self._back():
            if each.rows is None:
                return None
            stop = min(each.stop, self.length)
            parts.append(each.rows.row_slice(max(0, start - each.start), stop - each.start))
            if each.start <= start:
                break
        whole = concat_rows(parts[::-1])
        return Tensor(whole.dtype, whole.shape, bytes(whole.data))

    def _back(self) -> Iterator[Passage]:
        passage: Passage | None = self.passage
        while passage is not None:
            yield passage
            passage = passage.before


class PrefixIndex:
    """Passages within `most_bytes`; `release` is given the pages that nobody here needs any more."""

    def __init__(self, most_bytes: int, release: Callable[[Sequence[KvPage]], None]) -> None:
        self.most_bytes = most_bytes
        self.nbytes = 0
        self._release = release
        # By mark the passage, and its rows up to there.
        self._known: dict[tuple[Span, bytes], tuple[Passage, int]] = {}
        # By when they were last of use; each after all that follow on it.
        self._passages: dict[Passage, None] = {}
        self._bytes_of: Counter[str] = Counter()  # by origin

    def __len__(self) -> int:
        return len(self._passages)

    def find(self, span: Span, marks: Sequence[bytes]) -> Prefix | None:
        """The longest prefix that one of these marks names; the last first, for a mark names all before it."""
        for mark in reversed(marks):
            found = self._known.get((span, mark))
            if found is not None:
                passage, rows = found
                self._use(passage)
                return Prefix(passage, passage.start + rows)
        return None

    def borrow(self, prefix: Prefix) -> None:
        """A session is about to begin with it: it stays until it is given back."""
        prefix.passage.borrowed += 1

    def give_back(self, prefix: Prefix) -> None:
        """The session has begun, or ended."""
        prefix.passage.borrowed -= 1

    def add(self, passage: Passage) -> bool:
        """Keep a passage; False, and nothing is changed, if it is known, does not follow on what is kept, or does
        not fit beside what is in use."""
        before, nbytes = passage.before, passage.nbytes
        known = self._known.get((passage.span, passage.marks[-1]))
        if known is not None:
            self._use(known[0])
            return False
        if not self._follows(passage):
            return False
        if before is not None:
            before.following += 1  # and so it stays
        fits = nbytes <= self.most_bytes and self._make_room(self.most_bytes - nbytes)
        if not fits:
            if before is not None:
                before.following -= 1
            return False
        for other in self._beside(passage):
            if passage.marks[: len(other.marks)] == other.marks and not other.borrowed:
                self._remove(other)
        self._enter(passage)
        self._passages[passage] = None
        self.nbytes += nbytes
        self._bytes_of[passage.origin] += nbytes
        self._use(passage)
        return True

    def shrink(self, most_bytes: int) -> None:
        """Keep no more than this from now on, but for what is borrowed."""
        self.most_bytes = most_bytes
        self._make_room(most_bytes)

    def release(self, pages: Sequence[KvPage]) -> None:
        """Nobody here needs these pages."""
        self._release(pages)

    def _follows(self, passage: Passage) -> bool:
        """Whether it begins where a whole page ends that is kept, or at position 0."""
        before = passage.before
        if before is None:
            return passage.start == 0
        return before in self._passages and passage.start == before.stop and not before.stop % PAGE_POSITIONS

    def _beside(self, passage: Passage) -> list[Passage]:
        """Others that follow on the same rows and begin alike."""
        return [
            other
            for other in self._passages
            if other.before is passage.before
            and other.marks[GRAIN - 1] == passage.marks[GRAIN - 1]
            and other.span == passage.span
            and other is not passage
        ]

    def _enter(self, passage: Passage) -> None:
        for rows, mark in _findable(passage):
            self._known.setdefault((passage.span, mark), (passage, rows))

    def _use(self, passage: Passage | None) -> None:
        while passage is not None:
            self._passages[passage] = self._passages.pop(passage)
            passage = passage.before

    def _make_room(self, bytes_left: int) -> bool:
        while self.nbytes > bytes_left:
            gone = self._least_useful()
            if gone is None:
                return False
            self._remove(gone)
        return True

    def _least_useful(self) -> Passage | None:
        """Of the origin that has the most if it can be, of the others else."""
        most = max(self._bytes_of.values(), default=0)
        other = None
        for passage in self._passages:
            if passage.following or passage.borrowed:
                continue
            if self._bytes_of[passage.origin] == most:
                return passage
            other = other or passage
        return other

    def _remove(self, passage: Passage) -> None:
        del self._passages[passage]
        for _, mark in _findable(passage):
            if self._known[passage.span, mark][0] is passage:
                del self._known[passage.span, mark]
        for other in self._beside(passage):
            self._enter(other)  # what they have in common is found there from now on
        if passage.before is not None:
            passage.before.following -= 1
        self.nbytes -= passage.nbytes
        self._bytes_of[passage.origin] -= passage.nbytes
        if not self._bytes_of[passage.origin]:
            del self._bytes_of[passage.origin]
        if passage.page is not None:
            self._release([passage.page])


def _findable(passage: Passage) -> Iterator[tuple[int, bytes]]:
    """Rows at which a prefix may end in it, with the mark after the last."""
    return ((rows, passage.marks[rows - 1]) for rows in range(GRAIN, len(passage.marks) + 1, GRAIN))
