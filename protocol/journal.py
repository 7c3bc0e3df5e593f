"""What was sent over one boundary, kept so that a replacement behind it can be filled. Pure.

A client keeps one for each boundary that it feeds (for boundary 0 the rows are int32 token ids), a hop one
for the boundary behind it (the rows are hidden states).

What a session holds side by side are lanes: lane 0, and those that began as a part of another. Of each the journal
keeps the path, the rows from position 0 on by the steps that brought them; what lanes have in common they share. The
rows on the paths of lanes that are still there, in the order of their steps, are all that a replacement needs: it
computes each once, whatever other lanes did, since none goes back to before it began.
"""

from __future__ import annotations

import sys
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import groupby

from protocol import limits
from protocol.candidates import NOTHING, Want
from protocol.entries import Entry, Note, Refill
from protocol.errors import LocalProtocolError
from protocol.messages import Lane, Step
from protocol.tensors import Tensor, concat_rows


class Journal:
    """The rows of positions 0..length, by the steps that brought them; at most `most_tokens` of each lane.

    Wants are kept for steps that are still out, so where they name more than `most_ids` ids together, the oldest are
    forgotten. What is not said of a lane is said of lane 0, which is always there.
    """

    def __init__(self, most_tokens: int = limits.SESSION_TOKENS, most_ids: int = sys.maxsize) -> None:
        self._most_tokens = most_tokens
        self._most_ids = most_ids
        self._ids = 0
        self._asking: deque[tuple[Note, int]] = deque()  # whose wants name ids, and how many
        self._paths: dict[int, list[Entry]] = {0: []}
        self._left = -1
        self._ends: list[tuple[int, int]] = []  # before which step which lane ended
        self._most_ends = 4 * limits.LANES

    @property
    def length(self) -> int:
        """Rows kept; the position that the next step has if nothing is rolled back."""
        return _length(self._paths[0])

    @property
    def last_number(self) -> int:
        """The number of the latest step kept, also for lanes that were left; -1 if there is none."""
        return max(self._left, *(path[-1].number for path in self._paths.values() if path), -1)

    @property
    def entries(self) -> tuple[Entry, ...]:
        """Every entry in order of number and of position; their rows are contiguous."""
        return tuple(self._paths[0])

    @property
    def lanes(self) -> frozenset[int]:
        """Those that are there."""
        return frozenset(self._paths)

    def append(self, number: int, position: int, rows: Tensor, want: Want) -> None:
        """Keep a step of lane 0. Raises: as `take`."""
        self.take(Step(number, position, rows, want))

    def take(self, step: Step) -> None:
        """Keep the rows of a step; of its lanes those from its positions on that stood before are forgotten first.

        Raises: LocalProtocolError, if rows between are missing, a lane is full or cannot be, or the number is not
        higher than every number before it.
        """
        self._check(step)
        for lane in step.ended:
            if self._paths.pop(lane, None) is not None:
                self._note_end(step.number, lane)
        note, parts, start = Note(step.number, step.want), step.parts, 0
        begun = {part.name: self._path_to(part) for part in parts if part.parent is not None}
        self._paths.update(begun)
        for place, part in enumerate(parts):
            rows = step.inputs
            if len(parts) > 1:
                rows = _copied(rows.row_slice(start, start + part.rows))
            self._put(part, rows, note, place)
            start += part.rows
        self._note_want(note)

    def truncate(self, length: int) -> None:
        """Forget the rows from position `length` on."""
        for entry in self._cut(self._paths[0], length):
            if len(self._paths) == 1 and self._asking and self._asking[-1][0] is entry.note:
                self._ids -= self._asking.pop()[1]

    def leave_lanes(self) -> None:
        """Forget all lanes but lane 0."""
        self._left = self.last_number
        self._paths = {0: self._paths[0]}

    def fork(self, length: int, after: int, most_tokens: int | None = None) -> Journal:
        """Another journal that begins with the first `length` rows, at least one, which it shares.

        Its last entry has the number `after` - 1, so that it is known by it that all is there, whatever was rolled
        back. Raises: LocalProtocolError, unless all these rows were brought by steps below `after`.
        """
        most = self._most_tokens if most_tokens is None else most_tokens
        path = self._paths[0]
        entries = path[: bisect_left(path, length, key=_position)]
        if not 1 <= length <= min(self.length, most) or entries[-1].number >= after:
            raise LocalProtocolError(f"{length} rows by steps below {after} are not what the journal has")
        other = Journal(most, self._most_ids)
        last = replace(entries[-1], note=Note(after - 1, entries[-1].want))
        other._paths[0] = [*entries[:-1], last]
        for entry in other._paths[0]:
            other._note_want(entry.note)
        other.truncate(length)
        return other

    def find(self, number: int) -> Entry | None:
        """What still stands of step `number`."""
        path = self._paths[0]
        index = bisect_left(path, number, key=_number)
        if index < len(path) and path[index].number == number:
            return path[index]
        return None

    def rows(self, start: int, stop: int) -> Tensor:
        """The rows of positions start:stop, which stand, in memory of their own."""
        parts, path = [], self._paths[0]
        for entry in path[bisect_right(path, start, key=_position) - 1 :]:
            if entry.position >= stop:
                break
            parts.append(
                entry.rows.row_slice(max(0, start - entry.position), min(stop, entry.stop) - entry.position)
            )
        return _copied(concat_rows(parts))

    def between(self, after: int, upto: int) -> list[Entry]:
        """What still stands, of any lane, of the steps behind number `after` up to `upto`, that one included."""
        found: dict[tuple[int, int], Entry] = {}
        for path in self._paths.values():
            first = bisect_right(path, after, key=_number)
            for entry in path[first : bisect_right(path, upto, lo=first, key=_number)]:
                _add(found, entry)
        entries = [*found.values()]
        return entries if len(self._paths) == 1 else sorted(entries, key=_order)

    def since(self, number: int) -> Iterator[Step]:
        """What still stands of step `number` and later ones, as they were."""
        return self._steps(number, 0, 1, first=number)

    def replay(self, live_from: int, fill_until: int, chunk_rows: int = limits.STEP_TOKENS) -> Iterator[Step]:
        """The steps that bring a new holder of the next boundary up to date.

        What stands of steps before `live_from` comes as fills up to stage `fill_until`, that of as many steps
        together as fit in `chunk_rows` rows and agree in dtype, under the highest number among them; others come as
        they were. Each is made when it is asked for: the journal must not change in between.
        """
        return self._steps(live_from, fill_until, chunk_rows, first=-1)

    def _steps(self, live_from: int, fill_until: int, chunk_rows: int, first: int) -> Iterator[Step]:
        fill, ends = Refill(chunk_rows), _Ends(self._ends, first)
        for number, found in groupby(self._log(first), key=_number):
            entries = [*found]
            ended = ends.upto(number, entries)
            live = number >= live_from
            if fill.lanes and (live or not fill.takes(entries, ended)):
                yield fill.step(fill_until)
                fill = Refill(chunk_rows)
            fill.add(entries, ended)
            if live:
                yield fill.step(None)
                fill = Refill(chunk_rows)
        if fill.lanes:
            yield fill.step(fill_until)

    def _log(self, first: int) -> list[Entry]:
        """All that stands of steps from number `first` on, and what their lanes began with, in order."""
        if len(self._paths) == 1:
            path = self._paths[0]
            return path[bisect_left(path, first, key=_number) :]
        found: dict[tuple[int, int], Entry] = {}
        for path in self._paths.values():
            for entry in path[bisect_left(path, first, key=_number) :]:
                _add(found, entry)
                if entry.origin is not None and entry.origin.number >= first:
                    _add(found, entry.origin)
        return sorted(found.values(), key=_order)

    def _check(self, step: Step) -> None:
        if step.number <= self.last_number:
            raise LocalProtocolError(f"step {step.number} after step {self.last_number}")
        for part in step.parts:
            path = self._paths.get(part.name if part.parent is None else part.parent)
            if path is None or part.position > _length(path):
                had = 0 if path is None else _length(path)
                raise LocalProtocolError(f"position {part.position} leaves a gap after {had} rows")
            if part.position + part.rows > self._most_tokens:
                raise LocalProtocolError(f"the journal holds at most {self._most_tokens} rows")

    def _path_to(self, part: Lane) -> list[Entry]:
        assert part.parent is not None
        parent = self._paths[part.parent]
        path = parent[: bisect_left(parent, part.position, key=_position)]
        self._cut(path, part.position)
        return path

    def _put(self, part: Lane, rows: Tensor, note: Note, place: int) -> None:
        path = self._paths[part.name]
        if part.name == 0:
            self.truncate(part.position)
            path.append(Entry(note, part.position, rows, place=place))
            return
        gone = [entry for entry in self._cut(path, part.position) if entry.lane == part.name]
        origin = None
        if gone and part.parent is None and not (path and path[-1].lane == part.name):
            first = gone[-1]
            origin = first.origin or replace(first, rows=_copied(first.rows.row_slice(0, 1)))
        path.append(Entry(note, part.position, rows, part.name, part.parent, place, origin))

    def _cut(self, path: list[Entry], length: int) -> list[Entry]:
        """Forget what a path has from position `length` on: the whole entries, last first."""
        gone = []
        while path and path[-1].position >= length:
            gone.append(path.pop())
        if path and path[-1].stop > length:
            last = path.pop()
            # A copy: a view would keep the forgotten rows in memory, which are bounded by nothing.
            path.append(replace(last, rows=_copied(last.rows.row_slice(0, length - last.position))))
        return gone

    def _note_want(self, note: Note) -> None:
        if not note.want.ids:
            return
        self._asking.append((note, len(note.want.ids)))
        self._ids += len(note.want.ids)
        while self._ids > self._most_ids:
            oldest, count = self._asking.popleft()
            self._ids -= count
            oldest.want = NOTHING

    def _note_end(self, number: int, lane: int) -> None:
        self._ends.append((number, lane))
        if len(self._ends) > self._most_ends:  # of most there is nothing left that anybody goes on from
            needed = {entry.lane for path in self._paths.values() for entry in path}
            self._ends = [(at, ended) for at, ended in self._ends if ended in needed]
            self._most_ends = 4 * limits.LANES + 2 * len(self._ends)


class _Ends:
    """Which lanes end before which step, of those that whoever is sent them knows by then.

    first: the number of the first step that is sent; who has those before it knows all lanes.
    """

    def __init__(self, ends: Sequence[tuple[int, int]], first: int) -> None:
        self._left = deque(end for end in ends if end[0] >= first)
        self._made = {lane for _, lane in ends} if first >= 0 else set[int]()

    def upto(self, number: int, entries: Iterable[Entry]) -> tuple[int, ...]:
        """Those that end before step `number` and after the last that was asked for; it brings these entries."""
        ended = []
        while self._left and self._left[0][0] <= number:
            lane = self._left.popleft()[1]
            if lane in self._made:
                self._made.discard(lane)
                ended.append(lane)
        self._made.update(entry.lane for entry in entries if entry.lane)
        return tuple(ended)


def _add(found: dict[tuple[int, int], Entry], entry: Entry) -> None:
    """Of what several lanes have of one lane's rows in a step, the most."""
    key = entry.number, entry.lane
    other = found.get(key)
    if other is None or other.stop < entry.stop:
        found[key] = entry


def _copied(rows: Tensor) -> Tensor:
    return Tensor(rows.dtype, rows.shape, bytes(rows.data))


def _length(path: Sequence[Entry]) -> int:
    return path[-1].stop if path else 0


def _number(entry: Entry) -> int:
    return entry.number


def _position(entry: Entry) -> int:
    return entry.position


def _order(entry: Entry) -> tuple[int, int]:
    return entry.number, entry.place
