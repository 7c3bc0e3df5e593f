"""Which steps run next, and together. Pure: moves numbers, never tensors.

A batch takes short steps (decode steps, drafts to check, short questions) up to one number of rows, and of the long
ones, beside them, pieces of so many rows in all that those who decode hardly wait for them. Where nobody else decodes
a long step runs whole, or as much of it as may hold up a step that comes meanwhile. Both have room of their own, so
neither starves. What came while a batch ran is the next; for whom it waits beside, `company` says.

Origins take turns, then the peers of one origin, then the sessions of one peer, so that whoever has many holds up
nobody else; who does not fit waits, and nobody goes before him. Inside a session all is in order of arrival, and one
piece runs at a time. `now` is in seconds, on any clock that does not jump.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from protocol import limits

# A step of up to this many rows is one of a session that decodes: a token, or a draft to check.
DECODE_ROWS = 8
# A session that has had such a step this recently is decoding, and its next step is on its way.
DECODING_S = 1.0


@dataclass(frozen=True, slots=True)
class Budget:
    """Rows that a batch may hold: of short steps, of long ones while somebody decodes, and of long ones else.

    The first at least `DECODE_ROWS`, the others at least one.
    """

    short: int = limits.STEP_TOKENS
    beside: int = limits.STEP_TOKENS
    alone: int = limits.STEP_TOKENS


class Owner(NamedTuple):
    """Whose session it is."""

    origin: str  # see `protocol.transport.origin`
    peer: str


NOBODY = Owner("", "")


class _Turns:
    """Sessions that wait for a turn; the next is that of the origin, and there of the peer, that waits longest."""

    def __init__(self) -> None:
        # Dicts for their order: what has had its turn goes to the end.
        self._waiting: dict[str, dict[str, dict[int, None]]] = {}
        self._owners: dict[int, Owner] = {}

    def __bool__(self) -> bool:
        return bool(self._owners)

    def __iter__(self) -> Iterator[int]:
        return iter(self._owners)

    def add(self, session: int, owner: Owner) -> None:
        self._owners[session] = owner
        self._waiting.setdefault(owner.origin, {}).setdefault(owner.peer, {})[session] = None

    def remove(self, session: int) -> None:
        owner = self._owners.pop(session, None)
        if owner is None:
            return
        peers = self._waiting[owner.origin]
        sessions = peers[owner.peer]
        del sessions[session]
        if not sessions:
            del peers[owner.peer]
            if not peers:
                del self._waiting[owner.origin]

    def first(self) -> int:
        """Whose turn it is."""
        peers = next(iter(self._waiting.values()))
        return next(iter(next(iter(peers.values()))))

    def take(self) -> int:
        """As `first`; the session no longer waits, and its peer and origin have had their turn."""
        session = self.first()
        owner = self._owners[session]
        peers = self._waiting.pop(owner.origin)
        self._waiting[owner.origin] = peers
        peers[owner.peer] = peers.pop(owner.peer)
        self.remove(session)
        return session


@dataclass(slots=True)
class _Job:
    number: int
    rows: int
    taken: int = 0

    @property
    def left(self) -> int:
        return self.rows - self.taken


@dataclass(frozen=True, slots=True)
class Piece:
    """Rows start:stop of one step of one session, for one call of the engine; `last` if the step ends with it."""

    session: int
    number: int
    start: int
    stop: int
    last: bool

    @property
    def rows(self) -> int:
        """How many there are."""
        return self.stop - self.start


class Scheduler:
    """Steps by session, in order; `take` says what to run together, within `budget`, which may change at any time."""

    def __init__(self, budget: Budget = Budget()) -> None:
        self.budget = budget
        self._jobs: dict[int, deque[_Job]] = {}
        self._running: set[int] = set()
        self._owners: dict[int, Owner] = {}
        # Sessions whose first job may run now.
        self._short = _Turns()
        self._long = _Turns()
        self._last_decode: dict[int, float] = {}  # by session, when it came; the latest last

    def __len__(self) -> int:
        """Steps not yet wholly taken."""
        return sum(len(jobs) for jobs in self._jobs.values())

    @property
    def may_take(self) -> bool:
        """Whether anything may run now."""
        return bool(self._short or self._long)

    def has(self, session: int) -> bool:
        """Whether steps of `session` wait."""
        return session in self._jobs

    @property
    def has_room(self) -> bool:
        """Whether something waits, and a token more would run with it."""
        rows = sum(self._jobs[session][0].left for session in self._short)
        return bool(self._jobs) and rows < self.budget.short

    def add(self, session: int, number: int, rows: int, now: float, owner: Owner = NOBODY) -> None:
        """A step of `session`, which is its `owner`'s, is ready once those before it have run."""
        if rows <= DECODE_ROWS:
            self._last_decode.pop(session, None)
            self._last_decode[session] = now
        self._owners[session] = owner
        jobs = self._jobs.setdefault(session, deque())
        jobs.append(_Job(number, rows))
        if len(jobs) == 1 and session not in self._running:
            self._line_up(session)

    def take(self, now: float) -> list[Piece]:
        """What to run next, one piece of a session at most; nothing, if nothing waits. Each rests until `finish`."""
        short = self._take_short()
        return [*short, *self._take_long(now, beside=bool(short))]

    def finish(self, session: int) -> None:
        """The piece that `session` had running is done."""
        self._running.discard(session)
        if session in self._jobs:
            self._line_up(session)

    def drop(self, session: int) -> None:
        """Forget the steps of `session`; what runs is finished by `finish` as ever."""
        self._jobs.pop(session, None)
        self._last_decode.pop(session, None)
        self._owners.pop(session, None)
        self._short.remove(session)
        self._long.remove(session)

    def _take_short(self) -> list[Piece]:
        pieces: list[Piece] = []
        left = self.budget.short
        while self._short:
            rows = self._jobs[self._short.first()][0].left
            if pieces and rows > left:
                break
            # The budget may have shrunk since the step was found to be short.
            pieces.append(self._cut(self._short.take(), max(left, DECODE_ROWS)))
            left -= pieces[-1].rows
        return pieces

    def _take_long(self, now: float, *, beside: bool) -> list[Piece]:
        pieces: list[Piece] = []
        used = 0
        while self._long:
            in_the_way = beside or self._others_decode(self._long.first(), now)
            left = (self.budget.beside if in_the_way else self.budget.alone) - used
            if left <= 0:
                break
            pieces.append(self._cut(self._long.take(), left))
            used += pieces[-1].rows
        return pieces

    def _cut(self, session: int, most_rows: int) -> Piece:
        """The next rows of a session's first step."""
        self._running.add(session)
        jobs = self._jobs[session]
        job = jobs[0]
        start = job.taken
        job.taken = min(job.rows, start + most_rows)
        if job.taken == job.rows:
            jobs.popleft()
            if not jobs:
                del self._jobs[session]
        return Piece(session, job.number, start, job.taken, job.taken == job.rows)

    def _others_decode(self, session: int, now: float) -> bool:
        latest = (at for other, at in reversed(self._last_decode.items()) if other != session)
        return now - next(latest, -math.inf) < DECODING_S

    def _line_up(self, session: int) -> None:
        # What is no more than a piece of a long step need not wait behind the long steps of others.
        is_short = self._jobs[session][0].left <= max(DECODE_ROWS, self.budget.beside)
        (self._short if is_short else self._long).add(session, self._owners[session])
