"""What was sent over one boundary, kept so that a replacement behind it can be filled. Pure.

A client keeps one for each boundary that it feeds (for boundary 0 the rows are int32 token ids), a hop one
for the boundary behind it (the rows are hidden states).
"""

from __future__ import annotations

import sys
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace

from protocol import limits
from protocol.candidates import NOTHING, Want
from protocol.errors import LocalProtocolError
from protocol.messages import Step
from protocol.tensors import Tensor, concat_rows


@dataclass(frozen=True, slots=True)
class Entry:
    """The rows of one step that still stand."""

    number: int
    position: int
    rows: Tensor
    want: Want

    @property
    def stop(self) -> int:
        """The position after the last row."""
        return self.position + self.rows.rows


class Journal:
    """The rows of positions 0..length, by the steps that brought them; at most `most_tokens` of them.

    Wants are kept for steps that are still out, so where they name more than `most_ids` ids together, the oldest are
    forgotten.
    """

    def __init__(self, most_tokens: int = limits.SESSION_TOKENS, most_ids: int = sys.maxsize) -> None:
        self._most_tokens = most_tokens
        self._most_ids = most_ids
        self._ids = 0
        self._asking: deque[int] = deque()  # numbers of entries whose wants name ids
        self._entries: list[Entry] = []

    @property
    def length(self) -> int:
        """Rows kept; the position that the next step has if nothing is rolled back."""
        return self._entries[-1].stop if self._entries else 0

    @property
    def last_number(self) -> int:
        """The number of the latest step kept; -1 if there is none."""
        return self._entries[-1].number if self._entries else -1

    @property
    def entries(self) -> tuple[Entry, ...]:
        """Every entry in order of number and of position; their rows are contiguous."""
        return tuple(self._entries)

    def append(self, number: int, position: int, rows: Tensor, want: Want) -> None:
        """Keep the rows of a step; those from `position` on that stood before are forgotten first.

        Raises: LocalProtocolError, if rows between are missing, the journal is full, or `number` is not
        higher than every number before it.
        """
        if position > self.length:
            raise LocalProtocolError(f"position {position} leaves a gap after {self.length} rows")
        if position + rows.rows > self._most_tokens:
            raise LocalProtocolError(f"the journal holds at most {self._most_tokens} rows")
        if number <= self.last_number:
            raise LocalProtocolError(f"step {number} after step {self.last_number}")
        self.truncate(position)
        self._entries.append(Entry(number, position, rows, want))
        if want.ids:
            self._asking.append(number)
            self._ids += len(want.ids)
            while self._ids > self._most_ids:
                self._forget_want(self._asking.popleft())

    def truncate(self, length: int) -> None:
        """Forget the rows from position `length` on."""
        while self._entries and self._entries[-1].position >= length:
            entry = self._entries.pop()
            if entry.want.ids:
                self._asking.pop()
                self._ids -= len(entry.want.ids)
        if self._entries and self._entries[-1].stop > length:
            last = self._entries.pop()
            kept = last.rows.row_slice(0, length - last.position)
            # A copy: a view would keep the forgotten rows in memory, which are bounded by nothing.
            kept = Tensor(kept.dtype, kept.shape, bytes(kept.data))
            self._entries.append(Entry(last.number, last.position, kept, last.want))

    def fork(self, length: int, after: int, most_tokens: int | None = None) -> Journal:
        """Another journal that begins with the first `length` rows, at least one, which it shares.

        Its last entry has the number `after` - 1, so that it is known by it that all is there, whatever was rolled
        back. Raises: LocalProtocolError, unless all these rows were brought by steps below `after`.
        """
        most = self._most_tokens if most_tokens is None else most_tokens
        entries = self._entries[: bisect_left(self._entries, length, key=_position)]
        if not 1 <= length <= min(self.length, most) or entries[-1].number >= after:
            raise LocalProtocolError(f"{length} rows by steps below {after} are not what the journal has")
        other = Journal(most, self._most_ids)
        other._entries = [*entries[:-1], replace(entries[-1], number=after - 1)]
        other._asking = deque(entry.number for entry in other._entries if entry.want.ids)
        other._ids = sum(len(entry.want.ids) for entry in entries)
        other.truncate(length)
        return other

    def find(self, number: int) -> Entry | None:
        """What still stands of step `number`."""
        index = bisect_left(self._entries, number, key=_number)
        if index < len(self._entries) and self._entries[index].number == number:
            return self._entries[index]
        return None

    def rows(self, start: int, stop: int) -> Tensor:
        """The rows of positions start:stop, which stand, in memory of their own."""
        parts = []
        for entry in self._entries[bisect_right(self._entries, start, key=_position) - 1 :]:
            if entry.position >= stop:
                break
            parts.append(
                entry.rows.row_slice(max(0, start - entry.position), min(stop, entry.stop) - entry.position)
            )
        whole = concat_rows(parts)
        return Tensor(whole.dtype, whole.shape, bytes(whole.data))

    def between(self, after: int, upto: int) -> list[Entry]:
        """What still stands of the steps behind number `after` up to `upto`, that one included."""
        first = bisect_right(self._entries, after, key=_number)
        return self._entries[first : bisect_right(self._entries, upto, lo=first, key=_number)]

    def replay(self, live_from: int, fill_until: int, chunk_rows: int = limits.STEP_TOKENS) -> Iterator[Step]:
        """The steps that bring a new holder of the next boundary up to date.

        Entries of steps before `live_from` come as fills up to stage `fill_until`, as many whole entries
        together as fit in `chunk_rows` rows and agree in dtype, under the highest number among them; others come as
        they were. Each is made when it is asked for: the journal must not change in between.
        """
        together: list[Entry] = []
        for entry in self._entries:
            live = entry.number >= live_from
            if together and (live or not _fits(together, entry, chunk_rows)):
                yield _fill(together, fill_until)
                together = []
            if live:
                yield Step(entry.number, entry.position, entry.rows, entry.want)
            else:
                together.append(entry)
        if together:
            yield _fill(together, fill_until)

    def _forget_want(self, number: int) -> None:
        index = bisect_left(self._entries, number, key=_number)
        entry = self._entries[index]
        self._ids -= len(entry.want.ids)
        self._entries[index] = replace(entry, want=NOTHING)


def _number(entry: Entry) -> int:
    return entry.number


def _position(entry: Entry) -> int:
    return entry.position


def _fits(together: list[Entry], entry: Entry, chunk_rows: int) -> bool:
    """Whether a fill can hold one more; rows came in another dtype where the hop that made them was replaced."""
    first = together[0]
    return entry.stop - first.position <= chunk_rows and entry.rows.dtype == first.rows.dtype


def _fill(entries: list[Entry], fill_until: int) -> Step:
    rows = concat_rows([entry.rows for entry in entries])
    return Step(entries[-1].number, entries[0].position, rows, NOTHING, fill_until)
