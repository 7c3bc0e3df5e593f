"""How many rows a batch may hold, from how long batches take. Pure."""

from __future__ import annotations

from typing import Final

from node.compute.measure import Speed
from node.compute.meter import blend
from node.compute.scheduler import DECODE_ROWS, Budget
from protocol import limits

# What pieces of long steps add to a batch while somebody decodes: this part of a lone decode step, or so many
# milliseconds. A decode step that comes when a batch has just begun waits for it and then runs in the next, so that
# its session notices such a piece twice.
BESIDE: Final = 0.5
LEAST_BESIDE_MS: Final = 5.0
# What a batch of short steps may take, in lone decode steps: where rows cost more than weights, nearly all that
# there is to gain. Others' turns come after no more than that.
SHORT: Final = 3.0
# What a batch waits for sessions that are expected: this part of what it takes less, with them in it, than one of
# their own.
PATIENCE: Final = 0.25
# How long a piece of a long step holds up whoever comes meanwhile, where nobody decodes.
ALONE_MS: Final = 400.0


class Sizer:
    """Follows batches: one row takes `_step_ms`, each more `_row_ms`. `budget` holds them within the times above."""

    def __init__(self, speed: Speed, blocks: int) -> None:
        """Begin with what was measured at the start, for a span of so many blocks."""
        self._step_ms = speed.decode_ms_per_block * blocks + speed.head_ms
        self._row_ms = speed.prefill_ms_per_token_block * blocks or self._step_ms
        self.budget = self._size()

    def observe(self, rows: int, compute_ms: float) -> None:
        """Take in one batch."""
        if rows == 1:
            self._step_ms = blend(self._step_ms, compute_ms)
        else:
            self._row_ms = blend(self._row_ms, max(compute_ms - self._step_ms, 0.0) / (rows - 1))
        self.budget = self._size()

    @property
    def patience_s(self) -> float:
        """How long a batch may wait for company."""
        return PATIENCE * max(0.0, self._step_ms - self._row_ms) / 1e3

    def _size(self) -> Budget:
        step_ms = self._step_ms
        return Budget(
            short=self._rows_in(SHORT * step_ms, least=DECODE_ROWS),
            beside=self._rows_in(max(BESIDE * step_ms, LEAST_BESIDE_MS), least=1),
            alone=self._rows_in(max(ALONE_MS, step_ms), least=DECODE_ROWS),
        )

    def _rows_in(self, ms: float, *, least: int) -> int:
        rows = ms / self._row_ms if self._row_ms > 0 else limits.STEP_TOKENS
        return int(min(max(rows, least), limits.STEP_TOKENS))
