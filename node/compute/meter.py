"""What steps really take: running means of the times that an announcement states. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from node.compute.counts import Counts
from node.compute.measure import Speed

# A tenth of the new: forgets half of the past in seven steps.
WEIGHT = 0.1
# Steps of at least this many rows tell how fast a prefill goes.
PREFILL_ROWS = 16
# After this long without a step nobody waits, and who comes computes alone; what steps took among others says nothing
# any more.
QUIET_S = 10.0


@dataclass(frozen=True, slots=True)
class StepTime:
    """One computed step."""

    rows: int
    blocks: int
    head: bool  # the head ran too
    queue_ms: float
    compute_ms: float  # of the batches that it was part of, which is how long its session waited
    alone: bool  # nothing else was in them


class _Mean:
    """Of what steps take alone, and of what they take as things are."""

    def __init__(self, ms: float) -> None:
        self.alone_ms = self.now_ms = ms

    def observe(self, ms: float, *, alone: bool) -> None:
        self.now_ms = _mean(self.now_ms, ms)
        if alone:
            self.alone_ms = _mean(self.alone_ms, ms)


class Meter:
    """Milliseconds, as a session more would have them: per block and token alone, per block and token in a chunk, of
    the head, in the queue.

    A decode step joins the batch that runs, and takes what that takes: a busy node says so, an idle one what it
    gives a session that it has for itself. `now`: seconds on any clock that does not jump.
    """

    def __init__(self, speed: Speed | None = None, counts: Counts | None = None) -> None:
        """Begin with what was measured at the start, if anything was."""
        self._counts = counts if counts is not None else Counts()
        speed = speed or Speed(0.0, 0.0, 0.0)
        self.head_ms = speed.head_ms
        self._decode = _Mean(speed.decode_ms_per_block)
        self._prefill = _Mean(speed.prefill_ms_per_token_block)
        self._queue_ms = 0.0
        self._last_at = float("-inf")

    def observe(self, step: StepTime, now: float) -> None:
        """Take in one step."""
        if self._is_quiet(now):
            for mean in (self._decode, self._prefill):
                mean.now_ms = mean.alone_ms
        self._last_at = now
        self._counts.step(step.queue_ms / 1e3)
        self._queue_ms = _mean(self._queue_ms, step.queue_ms)
        if step.blocks == 0:
            if step.head and step.rows == 1 and step.alone:
                self.head_ms = _mean(self.head_ms, step.compute_ms)
            return
        blocks_ms = max(0.0, step.compute_ms - (self.head_ms if step.head else 0.0))
        if step.rows == 1:
            self._decode.observe(blocks_ms / step.blocks, alone=step.alone)
        elif step.rows >= PREFILL_ROWS:
            self._prefill.observe(blocks_ms / step.blocks / step.rows, alone=step.alone)

    def decode_ms(self, now: float) -> float:
        """Of one token in one block."""
        return self._decode.alone_ms if self._is_quiet(now) else self._decode.now_ms

    def prefill_ms(self, now: float) -> float:
        """Of one token of many in one block."""
        return self._prefill.alone_ms if self._is_quiet(now) else self._prefill.now_ms

    def queue_ms(self, now: float) -> float:
        """The mean delay of recent steps before they were computed."""
        return 0.0 if self._is_quiet(now) else self._queue_ms

    def _is_quiet(self, now: float) -> bool:
        return now - self._last_at >= QUIET_S


def blend(old: float, new: float) -> float:
    """The running mean of what it was and one new value."""
    return old + WEIGHT * (new - old)


def _mean(old: float, new: float) -> float:
    return blend(old, new) if old > 0.0 else new
