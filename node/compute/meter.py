"""What steps really take: running means of the times that an announcement states. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from node.compute.measure import Speed

# A tenth of the new: forgets half of the past in seven steps.
WEIGHT = 0.1
# Steps of at least this many rows tell how fast a prefill goes.
PREFILL_ROWS = 16
# After this long without a step nobody waits; the mean of the queue's delay says nothing any more.
QUIET_S = 10.0


@dataclass(frozen=True, slots=True)
class StepTime:
    """One computed step."""

    rows: int
    blocks: int
    head: bool  # the head ran too
    queue_ms: float
    compute_ms: float


class Meter:
    """Milliseconds: per block and token alone, per block and token in a chunk, of the head, in the queue."""

    def __init__(self, decode_ms: float = 0.0, prefill_ms: float = 0.0, head_ms: float = 0.0) -> None:
        self.decode_ms = decode_ms
        self.prefill_ms = prefill_ms
        self.head_ms = head_ms
        self._queue_ms = 0.0
        self._last_at = float("-inf")

    @classmethod
    def measured(cls, speed: Speed) -> Meter:
        """Begin with what was measured at the start."""
        return cls(speed.decode_ms_per_block, speed.prefill_ms_per_token_block, speed.head_ms)

    def observe(self, step: StepTime, now: float) -> None:
        """Take in one step. `now`: seconds on any clock that does not jump."""
        self._last_at = now
        self._queue_ms = _mean(self._queue_ms, step.queue_ms)
        if step.blocks == 0:
            if step.head and step.rows == 1:
                self.head_ms = _mean(self.head_ms, step.compute_ms)
            return
        blocks_ms = max(0.0, step.compute_ms - (self.head_ms if step.head else 0.0))
        if step.rows == 1:
            self.decode_ms = _mean(self.decode_ms, blocks_ms / step.blocks)
        elif step.rows >= PREFILL_ROWS:
            self.prefill_ms = _mean(self.prefill_ms, blocks_ms / step.blocks / step.rows)

    def queue_ms(self, now: float) -> float:
        """The mean delay of recent steps before they were computed."""
        return self._queue_ms if now - self._last_at < QUIET_S else 0.0


def _mean(old: float, new: float) -> float:
    return old + WEIGHT * (new - old) if old > 0.0 else new
