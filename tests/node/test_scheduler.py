"""The scheduler: order inside a session, short before long, and no starving."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from node.compute.scheduler import DECODING_S, SHORT_BEFORE_LONG, SHORT_ROWS, Owner, Piece, Scheduler


def drain(scheduler: Scheduler) -> list[Piece]:
    """Run everything, one at a time."""
    pieces = []
    while (piece := scheduler.take(0.0)) is not None:
        pieces.append(piece)
        scheduler.finish(piece.session)
    return pieces


def test_one_piece_of_a_session_at_a_time() -> None:
    """The second step of a session waits for the first, another session's does not."""
    scheduler = Scheduler()
    scheduler.add(1, 0, 1, 0.0)
    scheduler.add(1, 1, 1, 0.0)
    scheduler.add(2, 0, 1, 0.0)
    assert scheduler.take(0.0) == Piece(1, 0, 0, 1, True)
    assert scheduler.take(0.0) == Piece(2, 0, 0, 1, True)
    assert scheduler.take(0.0) is None
    scheduler.finish(1)
    assert scheduler.take(0.0) == Piece(1, 1, 0, 1, True)


def test_a_decode_step_goes_between_the_pieces_of_a_prefill() -> None:
    """A long step is cut, and a short one that came later need not wait for all of it."""
    scheduler = Scheduler(piece_rows=16)
    scheduler.add(2, 0, 1, 0.0)
    drain(scheduler)
    scheduler.add(1, 0, 40, 0.0)
    first = scheduler.take(0.0)
    assert first == Piece(1, 0, 0, 16, False)
    scheduler.add(2, 0, 1, 0.0)
    scheduler.finish(1)
    assert drain(scheduler) == [
        Piece(2, 0, 0, 1, True),
        Piece(1, 0, 16, 32, False),
        Piece(1, 0, 32, 40, True),
    ]


def test_a_prefill_alone_runs_whole() -> None:
    """Cut only while another session decodes, or did so a moment ago."""
    scheduler = Scheduler(piece_rows=16)
    scheduler.add(1, 0, 1, 0.0)  # its own decoding does not count
    scheduler.add(1, 1, 40, 0.0)
    scheduler.add(2, 0, 1, 0.0)
    drain(scheduler)
    for number, (now, pieces) in enumerate([(0.5, 3), (DECODING_S, 1)]):
        scheduler.add(1, 2 + number, 40, now)
        taken = 0
        while (piece := scheduler.take(now)) is not None:
            taken += 1
            scheduler.finish(piece.session)
        assert taken == pieces


def test_a_prefill_never_starves() -> None:
    """Behind endless decode steps, a long step still has its turn."""
    scheduler = Scheduler()
    scheduler.add(0, 0, 100, 0.0)
    for number in range(100):
        scheduler.add(1, number, 1, 0.0)
        scheduler.add(2, number, 1, 0.0)
    order = [piece.session for piece in drain(scheduler)]
    assert order.index(0) == SHORT_BEFORE_LONG


def test_a_dropped_session_leaves_nothing() -> None:
    """Its waiting steps are gone; what ran is finished without harm."""
    scheduler = Scheduler()
    scheduler.add(1, 0, 100, 0.0)
    scheduler.add(1, 1, 1, 0.0)
    assert scheduler.take(0.0) is not None
    scheduler.drop(1)
    scheduler.finish(1)
    assert (scheduler.take(0.0), len(scheduler)) == (None, 0)


JOBS = st.lists(st.tuples(st.integers(0, 3), st.integers(1, 50)), max_size=40)


@given(JOBS, st.integers(1, 20))
def test_every_row_runs_once_and_in_order(jobs: list[tuple[int, int]], piece_rows: int) -> None:
    """Whatever is added, each session's rows run once, in the order of its steps, in bounded pieces
    where others decode.
    """
    scheduler = Scheduler(piece_rows)
    for number, (session, rows) in enumerate(jobs):
        scheduler.add(session, number, rows, 0.0)
    seen: dict[int, list[tuple[int, int]]] = {}
    for piece in drain(scheduler):
        if any(session != piece.session and rows <= SHORT_ROWS for session, rows in jobs):
            assert piece.stop - piece.start <= max(piece_rows, SHORT_ROWS)
        seen.setdefault(piece.session, []).extend(
            (piece.number, row) for row in range(piece.start, piece.stop)
        )
    expected: dict[int, list[tuple[int, int]]] = {}
    for number, (session, rows) in enumerate(jobs):
        expected.setdefault(session, []).extend((number, row) for row in range(rows))
    assert seen == expected
    assert len(scheduler) == 0


def test_many_sessions_of_one_peer_hold_up_nobody_else() -> None:
    """Behind sixty sessions of another peer, a step waits for one of theirs; of many peers elsewhere, for one too."""
    scheduler = Scheduler()
    for session in range(60):
        scheduler.add(session, 0, 1, 0.0, Owner("there", "greedy"))
    scheduler.add(60, 0, 1, 0.0, Owner("there", "modest"))
    for session in range(100, 160):
        scheduler.add(session, 0, 1, 0.0, Owner("elsewhere", str(session)))
    scheduler.add(200, 0, 1, 0.0, Owner("here", "alone"))
    order = [piece.session for piece in drain(scheduler)]
    assert order[:3] == [0, 100, 200]
    assert order.index(60) == 3
    assert len(order) == 122


@given(
    st.lists(
        st.tuples(st.integers(0, 2), st.integers(0, 2), st.integers(0, 2), st.booleans()),
        min_size=1,
        max_size=60,
    ),
    st.data(),
)
def test_turns_are_taken_by_origin_then_peer(
    jobs: list[tuple[int, int, int, bool]], data: st.DataObject
) -> None:
    """However steps come and finish, between two turns of a waiting peer's origin every other waiting origin has one,
    and no step is lost.
    """
    scheduler = Scheduler()
    waiting: list[int] = []
    owners: dict[int, Owner] = {}
    since: dict[str, list[str]] = {}  # origin that waits -> those that had a turn since it began to

    def take() -> None:
        piece = scheduler.take(0.0)
        assert piece is not None
        origin = owners[piece.session].origin
        waiting.remove(piece.session)
        for other, served in since.items():
            if other != origin:
                served.append(origin)
                assert served.count(origin) == 1
        since.pop(origin, None)
        scheduler.finish(piece.session)
        if any(owners[session].origin == origin for session in waiting):
            since[origin] = []

    for number, (origin, peer, session, taken) in enumerate(jobs):
        key = 9 * origin + 3 * peer + session
        owners[key] = Owner(str(origin), str(peer))
        scheduler.add(key, number, 1, 0.0, owners[key])
        waiting.append(key)
        since.setdefault(str(origin), [])
        if taken and data.draw(st.booleans()):
            take()
    while waiting:
        take()
    assert scheduler.take(0.0) is None


def test_a_session_that_is_dropped_gives_its_turn_on() -> None:
    """Nothing of it is left in the line."""
    scheduler = Scheduler()
    scheduler.add(1, 0, 1, 0.0, Owner("a", "p"))
    scheduler.add(2, 0, 1, 0.0, Owner("a", "q"))
    scheduler.drop(1)
    assert [piece.session for piece in drain(scheduler)] == [2]
