"""The scheduler: batches within their budget, order inside a session, and no starving."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from node.compute.scheduler import DECODE_ROWS, DECODING_S, Budget, Owner, Piece, Scheduler

BUDGET = Budget(short=32, beside=16, alone=24)


def drain(scheduler: Scheduler, now: float = 0.0) -> list[list[Piece]]:
    """Run everything, one batch after the other."""
    batches = []
    while batch := scheduler.take(now):
        batches.append(batch)
        for piece in batch:
            scheduler.finish(piece.session)
    return batches


def test_one_piece_of_a_session_at_a_time() -> None:
    """The second step of a session waits for the first, another session's does not."""
    scheduler = Scheduler()
    scheduler.add(1, 0, 1, 0.0)
    scheduler.add(1, 1, 1, 0.0)
    scheduler.add(2, 0, 1, 0.0)
    assert scheduler.take(0.0) == [Piece(1, 0, 0, 1, True), Piece(2, 0, 0, 1, True)]
    assert scheduler.take(0.0) == []
    scheduler.finish(1)
    assert scheduler.take(0.0) == [Piece(1, 1, 0, 1, True)]


def test_what_came_while_a_batch_ran_is_the_next_batch() -> None:
    """All of it, though one of the first batch still has more."""
    scheduler = Scheduler(BUDGET)
    scheduler.add(0, 0, 1, 0.0)
    first = scheduler.take(0.0)
    for session in range(1, 20):
        scheduler.add(session, 0, 1, 0.0)
    scheduler.add(0, 1, 1, 0.0)
    for piece in first:
        scheduler.finish(piece.session)
    assert [piece.session for piece in scheduler.take(0.0)] == [*range(1, 20), 0]


def test_pieces_of_a_prefill_go_beside_decode_steps() -> None:
    """A long step is cut, and short ones that come later need not wait for all of it."""
    scheduler = Scheduler(BUDGET)
    scheduler.add(2, 0, 1, 0.0)
    drain(scheduler)
    scheduler.add(1, 0, 40, 0.0)
    assert scheduler.take(0.0) == [Piece(1, 0, 0, 16, False)]
    scheduler.add(2, 1, 1, 0.0)
    scheduler.finish(1)
    assert drain(scheduler) == [
        [Piece(2, 1, 0, 1, True), Piece(1, 0, 16, 32, False)],
        [Piece(1, 0, 32, 40, True)],
    ]


def test_a_prefill_alone_runs_in_larger_pieces() -> None:
    """While another session decodes, or did so a moment ago, or has something short in the same batch, in smaller."""
    scheduler = Scheduler(BUDGET)
    scheduler.add(1, 0, 1, 0.0)  # its own decoding does not count
    scheduler.add(1, 1, 48, 0.0)
    assert [[piece.rows for piece in batch] for batch in drain(scheduler)] == [[1], [24], [24]]
    scheduler.add(2, 0, 1, 1.0)
    drain(scheduler)
    for number, (now, most) in enumerate([(1.5, 16), (1.0 + DECODING_S, 24)]):
        scheduler.add(1, 2 + number, 48, now)
        assert max(piece.rows for [piece] in drain(scheduler, now)) == most
    scheduler.add(1, 4, 48, 9.0)
    scheduler.add(2, 1, DECODE_ROWS + 1, 9.0)
    assert [piece.rows for piece in scheduler.take(9.0)] == [DECODE_ROWS + 1, 16]


def test_what_a_prompt_leaves_goes_to_the_next() -> None:
    """Several long steps share a batch, and take turns."""
    scheduler = Scheduler(BUDGET)
    for session, rows in ((1, 20), (2, 40), (3, 40)):
        scheduler.add(session, 0, rows, 0.0)
    batches = drain(scheduler)
    assert [[(piece.session, piece.rows) for piece in batch] for batch in batches] == [
        [(1, 20), (2, 4)],
        [(3, 24)],
        [(3, 16), (2, 16)],  # no more than a piece is left of one of them: it waits for nobody
        [(2, 20)],
    ]


def test_a_dropped_session_leaves_nothing() -> None:
    """Its waiting steps are gone; what ran is finished without harm."""
    scheduler = Scheduler(BUDGET)
    scheduler.add(1, 0, 100, 0.0)
    scheduler.add(1, 1, 1, 0.0)
    assert scheduler.take(0.0)
    scheduler.drop(1)
    scheduler.finish(1)
    assert (scheduler.take(0.0), len(scheduler)) == ([], 0)


def test_what_waits_leaves_room_or_not() -> None:
    """For a token more: as long as short steps do not fill a batch. With nothing there is nothing to join."""
    scheduler = Scheduler(BUDGET)
    assert not scheduler.has_room
    scheduler.add(0, 0, 100, 0.0)
    assert scheduler.has(0)
    assert scheduler.has_room
    for session in range(1, 5):
        scheduler.add(session, 0, DECODE_ROWS, 0.0)
        assert scheduler.has_room == (session < 4)
    drain(scheduler)
    assert not any(scheduler.has(session) for session in range(5))


def test_many_sessions_of_one_peer_hold_up_nobody_else() -> None:
    """Where not all fit, a step goes with the first, behind sixty sessions of another peer, or of many peers."""
    scheduler = Scheduler(Budget(short=32, beside=8, alone=8))
    for session in range(60):
        scheduler.add(session, 0, 8, 0.0, Owner("there", "greedy"))
    scheduler.add(60, 0, 1, 0.0, Owner("there", "modest"))
    for session in range(100, 160):
        scheduler.add(session, 0, 8, 0.0, Owner("elsewhere", str(session)))
    scheduler.add(200, 0, 1, 0.0, Owner("here", "alone"))
    batches = [[piece.session for piece in batch] for batch in drain(scheduler)]
    assert batches[0][:3] == [0, 100, 200]
    assert 60 in batches[0]


class Batches(RuleBasedStateMachine):
    """Whatever comes, in whatever order, while batches of a budget that changes run."""

    @initialize()
    def begin(self) -> None:
        self.scheduler = Scheduler()
        self.now = 0.0
        self.running: list[Piece] = []
        # By session: its steps, and (number, row) of all that ran.
        self.steps: dict[int, list[int]] = {}
        self.ran: dict[int, list[tuple[int, int]]] = {}
        self.passed: dict[int, int] = {}

    @rule(session=st.integers(0, 9), rows=st.integers(1, 60), later=st.sampled_from([0.0, 0.1, 2.0]))
    def add(self, session: int, rows: int, later: float) -> None:
        self.now += later
        steps = self.steps.setdefault(session, [])
        steps.append(rows)
        owner = Owner(str(session % 2), str(session % 3))
        self.scheduler.add(session, len(steps) - 1, rows, self.now, owner)

    @rule(short=st.integers(8, 40), beside=st.integers(1, 40), more=st.integers(0, 40))
    def measure_anew(self, short: int, beside: int, more: int) -> None:
        self.scheduler.budget = Budget(short, beside, beside + more)

    @rule()
    def run(self) -> None:
        for piece in self.running:
            self.scheduler.finish(piece.session)
        waiting = {session for session, rows in self.left().items() if rows}
        self.running = self.scheduler.take(self.now)
        budget, sessions = self.scheduler.budget, [piece.session for piece in self.running]
        assert bool(self.running) == bool(waiting)
        assert len(set(sessions)) == len(sessions)
        assert sum(piece.rows for piece in self.running) <= budget.short + budget.alone
        for piece in self.running:
            ran = self.ran.setdefault(piece.session, [])
            ran += [(piece.number, row) for row in range(piece.start, piece.stop)]
            steps = self.steps[piece.session]
            assert piece.last == (piece.stop == steps[piece.number])
            assert ran == [(n, row) for n, rows in enumerate(steps) for row in range(rows)][: len(ran)]
        for session in waiting:
            self.passed[session] = 0 if session in sessions else self.passed.get(session, 0) + 1
            # In its own line at most nine others are before it.
            assert self.passed[session] <= 9

    @invariant()
    def what_is_left_is_known(self) -> None:
        """It counts steps that are not wholly taken."""
        left = {session: rows for session, rows in self.left().items() if rows}
        assert bool(len(self.scheduler)) == bool(left)

    def left(self) -> dict[int, int]:
        return {session: sum(rows) - len(self.ran.get(session, ())) for session, rows in self.steps.items()}


TestBatches = Batches.TestCase


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 100)), max_size=40), st.integers(1, 30))
def test_who_decodes_runs_in_every_batch(jobs: list[tuple[int, int]], beside: int) -> None:
    """With so many rows beside it at most, however many prompts wait, and how long ones."""
    scheduler = Scheduler(Budget(short=32, beside=beside, alone=100))
    for number, (session, rows) in enumerate(jobs):
        scheduler.add(session, number, rows, 0.0, Owner("one", "peer"))
    for number in range(10):
        scheduler.add(9, number, 1, 0.0, Owner("another", "peer"))
        batch = scheduler.take(0.0)
        assert 9 in [piece.session for piece in batch]
        assert sum(piece.rows for piece in batch) <= 32 + beside
        for piece in batch:
            scheduler.finish(piece.session)
