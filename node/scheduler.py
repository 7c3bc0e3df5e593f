"""Which steps run next. Pure: moves numbers, never tensors.

A step of few rows (a decode step, a draft to check) goes before a long one, and after a few short ones a long one has
its turn. While other sessions decode, a long step is cut into pieces, so that it holds them up for no longer than a
piece takes; when it is alone it runs whole, which is faster. Inside a session everything is in order of arrival, and
one piece runs at a time. `now` is in seconds, on any clock that does not jump.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from protocol import limits

# Steps of up to this many rows cost a node about what one row costs: the weights are read once.
SHORT_ROWS = 8
# Short steps that may pass a waiting long one: it gets at least one turn in nine.
SHORT_BEFORE_LONG = 8
# A session that has had a short step this recently is decoding, and its next step is on its way.
DECODING_S = 1.0


@dataclass(slots=True)
class _Job:
    number: int
    rows: int
    taken: int = 0


@dataclass(frozen=True, slots=True)
class Piece:
    """Rows start:stop of one step of one session, for one call of the engine; `last` if the step ends with it."""

    session: int
    number: int
    start: int
    stop: int
    last: bool


class Scheduler:
    """Steps by session, in order; `take` says what to run. `piece_rows` bounds a piece of a long step."""

    def __init__(self, piece_rows: int = limits.STEP_TOKENS) -> None:
        self.piece_rows = piece_rows
        self._jobs: dict[int, deque[_Job]] = {}
        self._running: set[int] = set()
        # Sessions whose first job may run now, in order of waiting (a dict, for its order and removal).
        self._short: dict[int, None] = {}
        self._long: dict[int, None] = {}
        self._passed = 0
        self._last_short: dict[int, float] = {}  # by session, when it came

    def __len__(self) -> int:
        """Steps not yet wholly taken."""
        return sum(len(jobs) for jobs in self._jobs.values())

    def add(self, session: int, number: int, rows: int, now: float) -> None:
        """A step of `session` is ready once those before it have run."""
        if rows <= SHORT_ROWS:
            self._last_short[session] = now
        jobs = self._jobs.setdefault(session, deque())
        jobs.append(_Job(number, rows))
        if len(jobs) == 1 and session not in self._running:
            self._line_up(session)

    def take(self, now: float) -> Piece | None:
        """What to run next, or None. Its session rests until `finish`."""
        line = self._choose()
        if line is None:
            return None
        self._passed = self._passed + 1 if line is self._short and self._long else 0
        session = next(iter(line))
        del line[session]
        self._running.add(session)
        jobs = self._jobs[session]
        job = jobs[0]
        start, stop = job.taken, min(job.rows, job.taken + self._most_rows(session, job, now))
        job.taken = stop
        if stop == job.rows:
            jobs.popleft()
            if not jobs:
                del self._jobs[session]
        return Piece(session, job.number, start, stop, stop == job.rows)

    def finish(self, session: int) -> None:
        """The piece that `session` had running is done."""
        self._running.discard(session)
        if session in self._jobs:
            self._line_up(session)

    def drop(self, session: int) -> None:
        """Forget the steps of `session`; what runs is finished by `finish` as ever."""
        self._jobs.pop(session, None)
        self._last_short.pop(session, None)
        self._short.pop(session, None)
        self._long.pop(session, None)

    def _choose(self) -> dict[int, None] | None:
        if self._short and not (self._long and self._passed >= SHORT_BEFORE_LONG):
            return self._short
        return self._long or None

    def _most_rows(self, session: int, job: _Job, now: float) -> int:
        if job.rows <= SHORT_ROWS or not self._others_decode(session, now):
            return job.rows
        return max(self.piece_rows, SHORT_ROWS)

    def _others_decode(self, session: int, now: float) -> bool:
        return any(other != session and now - at < DECODING_S for other, at in self._last_short.items())

    def _line_up(self, session: int) -> None:
        line = self._short if self._jobs[session][0].rows <= SHORT_ROWS else self._long
        line[session] = None
