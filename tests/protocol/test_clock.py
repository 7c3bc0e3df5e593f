"""The time in the swarm, by those who answer."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol import limits
from protocol.clock import AGE_S, SwarmClock
from tests.protocol.samples import NOW


def test_nobody_heard() -> None:
    """Our own clock, and no complaint."""
    clock = SwarmClock()
    assert (clock.offset_s, clock.complaint()) == (0.0, "")


@given(st.lists(st.floats(-1e6, 1e6), max_size=400), st.floats(0, AGE_S), st.randoms())
def test_no_number_of_liars_shifts_a_clock_that_one_honest_node_confirms(lies, age_s, rng) -> None:  # type: ignore[no-untyped-def]
    """Whenever it is heard among them."""
    clock = SwarmClock()
    heard = [(f"liar {n}", NOW + lie) for n, lie in enumerate(lies)]
    heard.insert(rng.randint(0, len(heard)), ("honest", NOW - age_s))
    for peer, issued in heard:
        clock.heard(peer, issued, NOW)
    assert clock.offset_s == 0.0


@pytest.mark.parametrize("off_s", [-86_400.0, -100.0, 100.0, 86_400.0])
def test_a_clock_that_is_off_is_set_right(off_s: float) -> None:
    """To within half the age of a record: those of honest nodes hold then. It is said whose clock it is."""
    clock, now = SwarmClock(), NOW + off_s
    for age_s, peer in enumerate(("a", "b", "c")):
        clock.heard(peer, NOW - 8 * age_s, now)
    assert abs(now + clock.offset_s - NOW) <= AGE_S / 2 < limits.RECORD_LIFE_S / 2
    said = re.fullmatch(
        r"this machine's clock is about (\d+) s (ahead of|behind) that of .*", clock.complaint()
    )
    assert said is not None
    assert abs(int(said[1]) - abs(off_s)) <= AGE_S / 2
    assert said[2] == ("ahead of" if off_s > 0 else "behind")


def test_the_clock_of_one_node_is_off() -> None:
    """It is named; nothing else changes."""
    clock = SwarmClock()
    clock.heard("honest", NOW - 5, NOW)
    clock.heard("late", NOW - 312, NOW)
    assert clock.offset_s == 0.0
    assert (
        clock.complaint() == "the clock of node late is about 300 s behind this machine's and that of others"
    )
