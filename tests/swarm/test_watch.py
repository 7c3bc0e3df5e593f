"""How long a hop is waited for: as it announces, but never for less than a while or more than a bound."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.candidates import NOTHING
from protocol.journal import Journal
from protocol.messages import Pong
from protocol.model import Span
from protocol.tensors import from_numpy
from swarm.routing.route import Hop
from swarm.session.claims import Claims
from swarm.session.watch import PROGRESS_FLOOR_S, STEP_STALL_S, Probe, Slow, Watch, Watched

ROWS = 64
MS = st.floats(0.0, 1e6)


def slow_after_s(planned: Hop, steps: int, patience: int) -> float:
    """How long a hop that answers all pings and computes nothing is waited for, to a quarter of a second."""
    journal, claims = Journal(), Claims(0.0)
    rows = from_numpy(np.zeros(ROWS, np.int32))
    for number in range(steps):
        journal.append(number, number * ROWS, rows, NOTHING)
    claims.sent = steps
    hop = Watched(b"", planned, claims, failed=False, fed_here=True, filled_at=0, patience=patience)
    watch = Watch(journal)
    for tick in range(10_000):
        now = tick / 4
        for verdict in watch.look([hop], now, 0.0):
            if isinstance(verdict, Slow):
                return now
            assert isinstance(verdict, Probe), verdict
            claims.pong(Pong(claims.ping(now).nonce, steps, 0), steps, now)
    raise AssertionError("it is waited for for ever")


@settings(max_examples=60, deadline=None)
@given(token_ms=MS, row_ms=MS, queue_ms=MS, steps=st.integers(1, 8), doublings=st.integers(0, 6))
def test_no_announcement_is_waited_for_too_long(
    token_ms: float, row_ms: float, queue_ms: float, steps: int, doublings: int
) -> None:
    """Whatever a hop announces, it has the least time at least and the most at most."""
    hop = Hop("peer", (), Span(0, 8), 0.0, token_ms, row_ms, queue_ms)
    waited_s = slow_after_s(hop, steps, 1 << doublings)
    assert PROGRESS_FLOOR_S < waited_s <= STEP_STALL_S + 1


def test_time_follows_speed_work_and_patience() -> None:
    """Twice the work takes twice as long, at twice the announced speed half as long; patience multiplies it."""
    slow, fast = (Hop("peer", (), Span(0, 8), 0.0, ms, ms, 0.0) for ms in (20.0, 10.0))
    usual = slow_after_s(fast, 1, 1)
    assert usual == pytest.approx(5 + 8 * (ROWS + 2) * 0.010 + 0.5, abs=0.6)
    assert slow_after_s(slow, 1, 1) - usual == pytest.approx(8 * (ROWS + 2) * 0.010, abs=0.3)
    assert slow_after_s(fast, 2, 1) - usual == pytest.approx(8 * (ROWS + 1) * 0.010, abs=0.3)
    assert slow_after_s(fast, 1, 4) == pytest.approx(4 * (usual - 0.5), abs=1.5)
