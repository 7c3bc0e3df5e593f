"""Whom a batch waits for: those who have shown that they come, and never for long."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from node.compute.company import SLACK, TRIPS, Company

PATIENCE_S = 0.010


def punctual(company: Company, session: int, trip_s: float, now: float = 0.0, trips: int = TRIPS) -> float:
    """A session that has come back so often after so long; the time then."""
    for _ in range(trips):
        company.leaves(session, now)
        now += trip_s
        company.comes(session, now)
    return now


def test_who_was_back_in_time_is_expected() -> None:
    """For twice as long as it took, but for one time, from when its result went out; then no more."""
    company = Company(PATIENCE_S)
    now = punctual(company, 1, 0.002, trips=TRIPS - 1)
    company.leaves(1, now)
    assert not company.expected
    company.comes(1, now + 0.003)
    company.leaves(1, 1.0)
    assert company.expected
    assert company.until(1.0) == 1.0 + SLACK * 0.002
    assert company.until(1.0 + SLACK * 0.002) == 1.0 + SLACK * 0.002
    assert not company.expected


def test_who_comes_is_waited_for_no_more() -> None:
    """Nor who has ended; the last of those who are left decides."""
    company = Company(PATIENCE_S)
    for session, trip_s in ((1, 0.001), (2, 0.002), (3, 0.004)):
        punctual(company, session, trip_s)
        company.leaves(session, 1.0)
    assert company.until(1.0) == 1.0 + SLACK * 0.004
    company.forget(3)
    assert company.until(1.0) == 1.0 + SLACK * 0.002
    company.comes(2, 1.001)
    company.comes(1, 1.001)
    assert not company.expected


def test_who_was_late_twice_is_not_expected_for_a_while() -> None:
    """However quick it is besides."""
    company = Company(PATIENCE_S)
    now = punctual(company, 1, 0.001)
    now = punctual(company, 1, 60.0, now, trips=1)
    company.leaves(1, now)
    assert company.expected
    now += 60.0
    company.comes(1, now)
    for _ in range(TRIPS - 1):
        company.leaves(1, now)
        assert not company.expected
        now += 0.001
        company.comes(1, now)
    company.leaves(1, now)
    assert company.expected


def test_without_patience_nobody_is_expected() -> None:
    """Not even who takes no time at all."""
    company = Company()
    company.leaves(1, punctual(company, 1, 0.0))
    assert company.until(0.0) == 0.0
    assert not company.expected


LIFE = st.lists(
    st.tuples(
        st.sampled_from(["leaves", "comes", "forget", "batch"]), st.integers(0, 5), st.floats(0.0, 0.02)
    ),
    max_size=200,
)


@given(LIFE, st.floats(0.0, 0.02))
def test_nobody_is_waited_for_beyond_the_patience(
    life: list[tuple[str, int, float]], patience_s: float
) -> None:
    """Whatever sessions do: not after their result went out so long ago, and only who has made its trips."""
    company, now = Company(patience_s), 0.0
    left: dict[int, float] = {}
    trips: dict[int, list[float]] = {}
    for what, session, later in life:
        now += later
        if what == "leaves":
            company.leaves(session, now)
            left[session] = now
        elif what == "comes":
            company.comes(session, now)
            if session in left:
                trips.setdefault(session, []).append(now - left.pop(session))
        elif what == "forget":
            company.forget(session)
            left.pop(session, None)
            trips.pop(session, None)
        until = company.until(now)
        awaited = [
            s
            for s, at in left.items()
            if at + patience_s > now
            and len(trips.get(s, [])) >= TRIPS
            and sorted(trips[s][-TRIPS:])[-2] <= patience_s
        ]
        assert now <= until <= max([now, *(left[s] + patience_s for s in awaited)])
        assert company.expected == (until > now)


@given(st.lists(st.booleans(), min_size=50, max_size=200))
def test_a_hostile_session_holds_others_up_in_few_of_its_steps(late: list[bool]) -> None:
    """It may come in time as often as it likes, to be late once more: two waits in vain of five steps at most."""
    company, now, in_vain = Company(PATIENCE_S), 0.0, 0
    for is_late in late:
        company.leaves(1, now)
        until = company.until(now)
        if is_late:
            in_vain += until > now
        now = now + 2 * PATIENCE_S if is_late else now
        company.comes(1, now)
    assert in_vain <= 2 * (len(late) // (TRIPS + 1) + 1)
