"""Which span a node should serve, and in which precision, if its owner does not say. Pure."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence

from protocol.model import Span


def coverage(spans: Iterable[Span], stages: int) -> list[int]:
    """How many of `spans` hold each stage."""
    counts = [0] * stages
    for span in spans:
        for stage in range(span.start, min(span.stop, stages)):
            counts[stage] += 1
    return counts


def choose_span(
    counts: Sequence[int], stage_bytes: Sequence[int], memory_bytes: int, rng: random.Random
) -> Span | None:
    """The window that raises the swarm's weakest stages the most, as long as memory allows; None if none fits.

    Of windows that raise them alike, one that leaves the weakest stages in as few runs as possible: a hole in two
    places is harder to fill than one. Of those, any.
    """
    windows = _widest_windows(stage_bytes, memory_bytes)
    if not windows:
        return None
    scores = [_score(counts, window) for window in windows]
    best = max(scores)
    return rng.choice([window for window, score in zip(windows, scores, strict=True) if score == best])


def choose_precision(
    counts: Sequence[int],
    stage_bytes: Sequence[Sequence[int]],
    memory_bytes: int,
    rng: random.Random,
    wanted: Span | None = None,
) -> tuple[int, Span] | None:
    """Which of several precisions, and which span in it; None if nothing fits.

    stage_bytes: of each stage in each precision, the most precise first. wanted: the span, where it is given.
    What leaves fewer stages that nobody serves comes first, then what is more precise: who cannot be answered at all
    gains more than who is answered more exactly.
    """
    found: list[tuple[int, int, Span]] = []
    for precision, sizes in enumerate(stage_bytes):
        span = wanted
        if wanted is None:
            span = choose_span(counts, sizes, memory_bytes, rng)
        elif sum(sizes[stage] for stage in wanted) > memory_bytes:
            span = None
        if span is not None:
            holes = sum(not count and stage not in span for stage, count in enumerate(counts))
            found.append((holes, precision, span))
    if not found:
        return None
    _, precision, span = min(found, key=lambda choice: choice[:2])
    return precision, span


def _widest_windows(stage_bytes: Sequence[int], memory_bytes: int) -> list[Span]:
    """Every window that fits and cannot be widened to the right."""
    windows: list[Span] = []
    stop, used = 0, 0
    for start in range(len(stage_bytes)):
        if stop < start:
            stop, used = start, 0
        while stop < len(stage_bytes) and used + stage_bytes[stop] <= memory_bytes:
            used += stage_bytes[stop]
            stop += 1
        if stop > start:
            if not windows or windows[-1].stop < stop:
                windows.append(Span(start, stop))
            used -= stage_bytes[start]
    return windows


def _score(counts: Sequence[int], window: Span) -> tuple[list[int], int]:
    """The stages' counts with the window's help, the weakest first; then the runs of the weakest, fewer is more."""
    after = [count + (stage in window) for stage, count in enumerate(counts)]
    weakest = min(after)
    starts = [
        stage
        for stage, count in enumerate(after)
        if count == weakest and (stage == 0 or after[stage - 1] != weakest)
    ]
    return sorted(after), -len(starts)
