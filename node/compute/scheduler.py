"""Which steps run next. Pure: moves numbers, never tensors.

A step of few rows (a decode step, a draft to check, a short question) goes before a long one, and after a few short
ones a long one has its turn. While other sessions decode, a long step is cut into pieces, so that it holds them up
for no longer than a piece takes; when it is alone it runs whole, which is faster. Origins take turns, then the peers
of one origin, then the sessions of one peer, so that whoever has many holds up nobody else. Inside a session all is
in order of arrival, and one piece runs at a time. `now` is in seconds, on any clock that does not jump.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from typing import NamedTuple

from protocol import limits

# Steps of up to this many rows cost a node about what one row costs: the weights are read once.
SHORT_ROWS = 8
# So does a step that takes this part of what a piece of a long one may hold decode steps up for: a question of a few
# words need not wait behind the long prompts of others.
SHORT_PIECE = 1 / 8
# Short steps that may pass a waiting long one: it gets at least one turn in nine.
SHORT_BEFORE_LONG = 8
# A session that has had a short step this recently is decoding, and its next step is on its way.
DECODING_S = 1.0


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

    def next(self) -> int:
        """Whose turn it is; the session no longer waits."""
        origin, peers = next(iter(self._waiting.items()))
        peer, sessions = next(iter(peers.items()))
        session = next(iter(sessions))
        del self._waiting[origin], peers[peer]
        peers[peer] = sessions
        self._waiting[origin] = peers
        self.remove(session)
        return session


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
        self._owners: dict[int, Owner] = {}
        # Sessions whose first job may run now.
        self._short = _Turns()
        self._long = _Turns()
        self._passed = 0
        self._last_short: dict[int, float] = {}  # by session, when it came; the latest last

    def __len__(self) -> int:
        """Steps not yet wholly taken."""
        return sum(len(jobs) for jobs in self._jobs.values())

    def add(self, session: int, number: int, rows: int, now: float, owner: Owner = NOBODY) -> None:
        """A step of `session`, which is its `owner`'s, is ready once those before it have run."""
        if rows <= SHORT_ROWS:
            self._last_short.pop(session, None)
            self._last_short[session] = now
        self._owners[session] = owner
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
        session = line.next()
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
        self._owners.pop(session, None)
        self._short.remove(session)
        self._long.remove(session)

    def _choose(self) -> _Turns | None:
        if self._short and not (self._long and self._passed >= SHORT_BEFORE_LONG):
            return self._short
        return self._long or None

    def _most_rows(self, session: int, job: _Job, now: float) -> int:
        if job.rows <= SHORT_ROWS or not self._others_decode(session, now):
            return job.rows
        return max(self.piece_rows, SHORT_ROWS)

    def _others_decode(self, session: int, now: float) -> bool:
        latest = (at for other, at in reversed(self._last_short.items()) if other != session)
        return now - next(latest, -math.inf) < DECODING_S

    def _line_up(self, session: int) -> None:
        short_rows = max(SHORT_ROWS, int(self.piece_rows * SHORT_PIECE))
        line = self._short if self._jobs[session][0].rows <= short_rows else self._long
        line.add(session, self._owners[session])
