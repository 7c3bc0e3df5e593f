"""What a journal keeps of a step, and the steps that are made of it again. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from protocol import limits
from protocol.candidates import NOTHING, Want
from protocol.messages import Lane, Step
from protocol.tensors import Tensor, concat_rows


@dataclass(slots=True)
class Note:
    """What all rows of one step have in common."""

    number: int
    want: Want


@dataclass(frozen=True, slots=True)
class Entry:
    """The rows of one step that still stand, of one lane. `parent` is set where they are the first that it has."""

    note: Note
    position: int
    rows: Tensor
    lane: int = 0
    parent: int | None = None
    place: int = 0  # among the lanes of its step
    origin: Entry | None = None  # a row that its lane began with, where that was gone back over

    @property
    def number(self) -> int:
        """Of the step."""
        return self.note.number

    @property
    def want(self) -> Want:
        """What the step wanted."""
        return self.note.want

    @property
    def stop(self) -> int:
        """The position after the last row."""
        return self.position + self.rows.rows


@dataclass(slots=True)
class Refill:
    """One step of what stands of one or more, in order; the last one's number is its own."""

    most_rows: int
    rows: int = 0
    ended: tuple[int, ...] = ()
    lanes: dict[int, list[Entry]] = field(default_factory=dict)

    def takes(self, entries: Sequence[Entry], ended: Sequence[int]) -> bool:
        """Whether those of one more step fit: in size, dtype (rows came in another where the hop that made them was
        replaced), and so that all forks may be taken and all ends come before any row."""
        if not self.lanes:
            return True
        rows = self.rows + sum(entry.rows.rows for entry in entries)
        one = next(iter(self.lanes.values()))[0].rows.dtype
        if rows > self.most_rows or any(entry.rows.dtype != one for entry in entries):
            return False
        used = {*self.lanes, *(each[0].parent for each in self.lanes.values())}
        names = {*self.lanes, *(entry.lane for entry in entries)}
        return len(names) <= limits.LANES and used.isdisjoint(ended) and all(map(self._goes_on, entries))

    def add(self, entries: Sequence[Entry], ended: Sequence[int]) -> None:
        """Take those of one more step."""
        self.ended += tuple(ended)
        for entry in entries:
            self.lanes.setdefault(entry.lane, []).append(entry)
            self.rows += entry.rows.rows

    def step(self, fill_until: int | None) -> Step:
        """The step: a fill up to a stage, or as it was."""
        found = [*self.lanes.values()]
        lanes = [Lane(each[0].lane, each[0].parent, each[0].position, _rows(each)) for each in found]
        first, rows = found[0][0], concat_rows([entry.rows for each in found for entry in each])
        number = max(each[-1].number for each in found)
        want = first.want if fill_until is None else NOTHING
        return Step(
            number,
            first.position,
            rows,
            want,
            fill_until,
            () if [*self.lanes] == [0] else tuple(lanes),
            self.ended,
        )

    def _goes_on(self, entry: Entry) -> bool:
        if entry.parent is not None:
            return entry.parent not in self.lanes and entry.lane not in self.lanes
        known = self.lanes.get(entry.lane)
        return known is None or known[-1].stop == entry.position


def _rows(entries: Sequence[Entry]) -> int:
    return sum(entry.rows.rows for entry in entries)
