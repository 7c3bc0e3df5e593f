"""What a session takes of what others computed here, and what it leaves to those that come.

Theory of operation
===================

A session that has computed nothing yet *takes*: of each step that goes on where the last one ended, the first rows
that the index knows by their marks, up to the end of a grain. Their keys and values it begins with once it computes
something; what left of them goes on as if it had just been computed. A step that wants something has its last row
computed, at every hop. The first row that is not taken ends the taking for good, and so does going back: from then on
all is computed.

A session *leaves* each page that it fills, and in the end what is on the last one. Three parties have what makes a
passage: the worker thread the keys and values, which it holds fast before the next step is computed (which may go
back and write over them) and when the cache is closed; the sender's journal the rows that left, which are read before
that next step is sent on; and the trail the marks of what entered, which the worker keeps up while it prepares a
call. The marks of what left are hashed by the worker too, a page at a time, for they are megabytes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import zip_longest
from typing import Final, cast

import trio

from node.compute.interfaces import PAGE_POSITIONS, KvCache, KvPage, PagedKv
from node.compute.loop import Executor, Outcome
from node.compute.prefix import GRAIN, Passage, Prefix, PrefixIndex
from node.hop.steps import Shape
from protocol.candidates import Want
from protocol.errors import Malformed
from protocol.messages import Known, Step
from protocol.tensors import Tensor
from protocol.trail import Trail, first_mark, marks_of

# Rows above this are hashed in a thread: below it takes less than going there.
HASHED_AT_ONCE_BYTES: Final = 16 * 1024

RowsOf = Callable[[int, int], Tensor | None]


@dataclass(frozen=True, slots=True)
class Taken:
    """The first rows of a step, which are not computed again."""

    count: int
    rows: Tensor | None  # as they left; None where the head is
    mark: bytes  # of the last of them, as it left


@dataclass(slots=True, eq=False)
class Filled:
    """Positions from `start` on that may be left: their marks, the one before them, and their page, which is held."""

    start: int
    before: bytes
    marks: tuple[bytes, ...]
    page: KvPage | None
    rows: Tensor | None = None  # as they left
    left: tuple[bytes, ...] = ()

    @property
    def stop(self) -> int:
        """The position after the last."""
        return self.start + len(self.marks)


class Reuse:
    """One session's. Without an index it takes and leaves nothing."""

    def __init__(self, shape: Shape, origin: str, index: PrefixIndex | None, executor: Executor) -> None:
        digest = shape.manifest.digest
        self._shape = shape
        self._origin = origin
        self._index = index
        self._executor = executor
        self._trail = Trail(first_mark(digest, shape.span.start))
        self._first_left = first_mark(digest, shape.span.stop)
        self._takes = self._leaves = index is not None
        self._prefix: Prefix | None = None  # what it begins with, and ...
        self._borrows = False  # ... whether the index has to keep that
        self._given = 0  # positions of whole pages that were left, or taken
        self._held: dict[Filled, None] = {}  # not left yet
        self._rest: Tensor | None = None  # what left of the positions from `_given` on, in the end
        self._last: list[Filled] = []
        self._parting = False
        self._leaving: deque[Filled] = deque()
        self._hashing = False

    # --- taking

    async def read(self, step: Step) -> Sequence[bytes]:
        """The marks of a step's rows, if it may take some."""
        if not self._takes or step.position != self._trail.length or not most_taken(step):
            return ()
        return await _hashed(self._trail.mark(step.position), step.inputs)

    async def read_known(self, known: Known) -> Sequence[bytes]:
        """The mark that a step names, and those of the rows after it up to where a grain ends."""
        if not self._takes or known.position != self._trail.length:
            return ()
        more = -(known.position + known.rows) % GRAIN
        if known.inputs is None or known.inputs.rows < more:
            return [known.mark]
        return [known.mark, *await _hashed(known.mark, known.inputs.row_slice(0, more))]

    def take(self, step: Step, marks: Sequence[bytes]) -> Taken | None:
        """The first rows of a step that need not be computed."""
        if not self._takes or self._index is None or step.position != self._trail.length:
            return None
        found = self._index.find(self._shape.span, marks)
        if found is None:
            return None
        return self._begin_with(found, min(found.length, step.position + most_taken(step)))

    def take_known(self, known: Known, marks: Sequence[bytes]) -> Taken | None:
        """The rows that the hop before names; None if they are not known here. Raises: Malformed, if the mark names
        others."""
        start, stop = self._trail.length, known.position + known.rows
        if not self._takes or self._index is None or known.position != start:
            return None
        found = self._index.find(self._shape.span, marks)
        if found is None:
            return None
        if found.length != stop + len(marks) - 1 or (start and found.mark(start) != self._trail.mark(start)):
            raise Malformed("a mark that names other rows")
        return self._begin_with(found, stop)

    def settle(self) -> None:
        """From now on the session computes."""
        self._takes = False

    def _begin_with(self, known: Prefix, stop: int) -> Taken:
        found = known.cut(stop)
        assert self._index is not None
        assert found is not None
        start = self._trail.length
        self._index.borrow(found)
        self.give_back()
        self._prefix, self._borrows = found, True
        self._trail.append(found.marks(start))
        return Taken(found.length - start, found.rows(start), found.left)

    def give_back(self) -> None:
        """It has begun with what it took, or never will."""
        if self._borrows and self._index is not None and self._prefix is not None:
            self._index.give_back(self._prefix)
        self._borrows = False

    @property
    def length(self) -> int:
        """Positions that are known by their marks."""
        return self._trail.length

    # --- in the worker thread

    def begin(self, cache: KvCache, position: int) -> None:
        """Put what was taken of positions below `position` in an empty cache."""
        prefix = None if self._prefix is None else self._prefix.cut(position)
        if prefix is not None:
            cast("PagedKv", cache).adopt(prefix.pages(), position)
            self._given = position - position % PAGE_POSITIONS

    def fork(self, other: Reuse, position: int) -> None:
        """Go on from the first `position` positions of another session, which has computed them."""
        self._trail = other._trail.fork(position)
        self._given = min(other._given, position - position % PAGE_POSITIONS)
        self._leaves = self._leaves and other._leaves  # else nobody has noted marks

    def enter(self, cache: KvCache, position: int, inputs: Tensor) -> list[Filled]:
        """Rows are about to be computed: note their marks; the pages that were filled before, and are held now."""
        if not self._leaves:
            return []
        filled = self._hold(cache, cache.length - cache.length % PAGE_POSITIONS)
        self._held.update(dict.fromkeys(filled))
        self._given = min(self._given, position - position % PAGE_POSITIONS)
        self._trail.cut(position)
        self._trail.extend(inputs)
        return filled

    def leave_off(self, cache: KvCache) -> list[Filled]:
        """From now on nothing is left: what may be, and is held now, to the last grain."""
        if not self._leaves:
            return []
        self._leaves = False
        stop = min(cache.length, self._trail.length)
        filled = self._hold(cache, stop - stop % GRAIN)
        self._held.update(dict.fromkeys(filled))
        return filled

    def end(self, cache: KvCache) -> None:
        """The session is over, and its cache is about to be closed: hold what is to be left, and nothing else."""
        for filled in self._held:
            if filled.page is not None:
                filled.page.release()
        self._held.clear()
        if self._parting:
            self._last = self._hold(cache, self._trail.length - self._trail.length % GRAIN)

    def _hold(self, cache: KvCache, stop: int) -> list[Filled]:
        start, trail = self._given, self._trail
        if stop <= start:
            return []
        pages = cast("PagedKv", cache).pages(start, stop)
        filled = []
        for begin, page in zip_longest(range(start, stop, PAGE_POSITIONS), pages):
            marks = trail.marks(begin, min(stop, begin + PAGE_POSITIONS))
            filled.append(Filled(begin, trail.mark(begin), marks, page))
        self._given = stop - stop % PAGE_POSITIONS
        return filled

    # --- leaving

    def part(self, rows_of: RowsOf) -> None:
        """The session is over, and all its steps were computed and sent on: `leave_last` will leave what is new."""
        start, stop = self._given, self._trail.length - self._trail.length % GRAIN
        if self._leaves and not self._takes and stop > start:
            self._rest, self._parting = rows_of(start, stop), True

    def leave_last(self) -> None:
        """Its cache is closed."""
        first = self._last[0].start if self._last else 0

        def rest(start: int, stop: int) -> Tensor | None:
            return None if self._rest is None else self._rest.row_slice(start - first, stop - first)

        self.leave(self._last, rest)
        self._last, self._rest = [], None

    def leave(self, filled: Sequence[Filled], rows_of: RowsOf) -> None:
        """Leave these to others. `rows_of` has what left of positions start:stop, None where the head is."""
        for each in filled:
            each.rows = rows_of(each.start, each.stop)
            self._held.pop(each, None)
            self._leaving.append(each)
        self._leave_next()

    def _leave_next(self) -> None:
        while self._leaving and not self._hashing:
            filled = self._leaving.popleft()
            assert self._index is not None
            before = self._index.find(self._shape.span, [filled.before])
            known = self._index.find(self._shape.span, filled.marks[-1:]) is not None
            if known or (filled.start and before is None):
                self._drop(filled)
            elif filled.rows is None:
                self._add(filled, before)
            else:
                self._hashing = True
                first = self._first_left if before is None else before.left
                self._executor.submit(partial(_hash, filled, first), partial(self._hashed, filled, before))

    def _hashed(self, filled: Filled, before: Prefix | None, outcome: Outcome[None]) -> None:
        self._hashing = False
        if outcome.error is None:
            self._add(filled, before)
        else:
            self._drop(filled)
        self._leave_next()

    def _add(self, filled: Filled, before: Prefix | None) -> None:
        assert self._index is not None
        passage = Passage(
            self._shape.span,
            filled.start,
            None if before is None else before.passage,
            filled.marks,
            filled.left,
            filled.rows,
            filled.page,
            self._origin,
        )
        if not self._index.add(passage):
            self._drop(filled)

    def _drop(self, filled: Filled) -> None:
        if self._index is not None and filled.page is not None:
            self._index.release([filled.page])


def most_taken(step: Step) -> int:
    """How many of a step's rows may be taken: all where nothing is wanted, else not those that are asked about."""
    wants_nothing = step.fill_until is not None or step.want.kind == "nothing"
    return step.inputs.rows if wants_nothing else max(0, step.inputs.rows - wanted_rows(step.want))


def named_step(known: Known, shape: Shape) -> Step:
    """The step that it stands for, with the rows that are not named. Raises: Malformed, if it names none, or those
    that what it wants has to be computed from."""
    inputs = known.inputs
    if inputs is None:
        inputs = Tensor("f32", (0, shape.manifest.hidden_size), b"")
    if not known.rows or inputs.rows < wanted_rows(known.want):
        raise Malformed("no rows are named, or all where some are to be computed")
    return Step(known.number, known.position, inputs, known.want)


def wanted_rows(want: Want) -> int:
    """Rows at the end of a step that have to be computed for what it wants; more than any step has for all."""
    if want.kind == "nothing":
        return 0
    return 1 << 30 if want.every else 1


async def _hashed(before: bytes, rows: Tensor) -> list[bytes]:
    """The marks of rows."""
    if len(rows.data) <= HASHED_AT_ONCE_BYTES:
        return list(marks_of(before, rows))
    return await trio.to_thread.run_sync(lambda: list(marks_of(before, rows)))


def _hash(filled: Filled, before: bytes) -> None:
    assert filled.rows is not None
    filled.left = tuple(marks_of(before, filled.rows))
