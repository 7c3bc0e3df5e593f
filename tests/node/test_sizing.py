"""How large batches become: the times stated are kept, whatever a machine is like, and however it changes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.compute.measure import Speed
from node.compute.scheduler import DECODE_ROWS
from node.compute.sizing import ALONE_MS, BESIDE, LEAST_BESIDE_MS, SHORT, Sizer
from protocol import limits

MS = st.floats(0.01, 1e4)


def batch_ms(step_ms: float, row_ms: float, rows: int) -> float:
    """A machine whose weights are read in `step_ms` while rows cost what they cost."""
    return step_ms + row_ms * (rows - 1)


@given(MS, st.floats(0.001, 2.0), MS)
def test_it_follows_the_machine(step_ms: float, share: float, measured_ms: float) -> None:
    """Whatever was measured at the start, batches soon take the times stated, as far as rows can be cut."""
    sizer = Sizer(Speed(measured_ms, measured_ms / 3, 0.0), blocks=1)
    row_ms = step_ms * share
    for _ in range(400):
        sizer.observe(1, step_ms)
        rows = 1 + sizer.budget.beside
        sizer.observe(rows, batch_ms(step_ms, row_ms, rows))
    budget = sizer.budget
    allowed = [
        (1, budget.beside, max(BESIDE * step_ms, LEAST_BESIDE_MS)),
        (DECODE_ROWS, budget.short, SHORT * step_ms),
        (DECODE_ROWS, budget.alone, max(ALONE_MS, step_ms)),
    ]
    for least, rows, ms in allowed:
        assert least <= rows <= limits.STEP_TOKENS
        assert rows == least or row_ms * rows <= 1.05 * ms
        assert rows == limits.STEP_TOKENS or row_ms * (rows + 1) >= 0.95 * ms


@given(MS, st.floats(0.001, 3.0), st.integers(2, 64), st.floats(0.0, 1.0))
def test_who_waits_as_long_as_may_be_gains_by_it(
    step_ms: float, share: float, sessions: int, of_patience: float
) -> None:
    """Two groups, of which one is computed while the other is on its way, take longer for a turn than one that waits
    for the last of its own each time: the trips of all, and the pass over the weights that it saves."""
    sizer = Sizer(Speed(step_ms, step_ms * share, 0.0), blocks=1)
    trip_ms = 1e3 * sizer.patience_s * of_patience
    half = sessions // 2
    row_ms = step_ms * share
    apart = batch_ms(step_ms, row_ms, half) + batch_ms(step_ms, row_ms, sessions - half)
    together = batch_ms(step_ms, row_ms, sessions) + trip_ms
    assert together <= apart * (1 + 1e-9) if share < 1.0 else trip_ms == 0.0


@given(st.lists(st.tuples(st.integers(1, 600), st.floats(0, 1e7)), max_size=50), MS)
def test_a_budget_is_always_one(batches: list[tuple[int, float]], measured_ms: float) -> None:
    """Bursts of other work, clocks that stand still: rows stay between a draft's and a step's."""
    sizer = Sizer(Speed(measured_ms, 0.0, 0.0), blocks=3)
    for rows, ms in batches:
        sizer.observe(rows, ms)
        budget = sizer.budget
        assert 1 <= budget.beside <= limits.STEP_TOKENS
        assert DECODE_ROWS <= budget.alone <= limits.STEP_TOKENS
        assert DECODE_ROWS <= budget.short <= limits.STEP_TOKENS
        assert sizer.patience_s >= 0.0


@pytest.mark.parametrize(
    ("speed", "blocks"), [(Speed(0.0, 0.0, 2.0), 0), (Speed(0.0, 0.0, 0.0), 0), (Speed(3.0, 0.0, 0.0), 4)]
)
def test_ends_alone_have_a_budget_too(speed: Speed, blocks: int) -> None:
    """Nodes of the embedding or of the head, where nothing was measured of blocks."""
    assert Sizer(speed, blocks).budget.short >= DECODE_ROWS
