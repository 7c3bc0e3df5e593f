"""Decode steps of several sessions as one recorded forward: on a device that computes faster than Python asks.

A forward of a small model is a thousand launches, which take longer than what is launched. So the forward of a number
of rows is recorded once (a CUDA graph) and replayed from then on. What it reads has fixed addresses and shapes, see
`PoolCaches`. There is a recording for each number of rows and of pages, both rounded up to powers of two.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, Final

import torch

from node.engine.cache import LayerCaches
from node.engine.pool import BLANK, SPARE, Pool
from node.engine.pooled import PoolCaches
from node.engine.split import SplitModel
from protocol.model import Span

# More rows than this are run in several batches.
MOST_ROWS: Final = 32
# Recordings that are kept; the one not used for longest gives way.
_MOST_KEPT: Final = 48


class Replay:
    """Recorded forwards of one span."""

    def __init__(self, model: SplitModel, span: Span, pool: Pool) -> None:
        self.span = span
        self.pool = pool
        self._model = model
        self._windows = model.new_cache(span).layers.windows()
        self._kept: OrderedDict[tuple[int, int, bool], _Recording] = OrderedDict()
        self._memory: Any = None  # what recordings share for what lies between their layers

    def run(self, sessions: Sequence[LayerCaches], inputs: torch.Tensor, *, logits: bool) -> torch.Tensor:
        """One row of each session, at most MOST_ROWS: hidden states or logits [sessions, width].

        They are valid until the next run. inputs: ids [sessions, 1] or states [sessions, 1, hidden], on the CPU.
        Raises: CacheFull, torch.OutOfMemoryError.
        """
        tables = [caches.page_table() for caches in sessions]
        key = _above(len(sessions)), _above(max(map(len, tables))), logits
        recording = self._kept.get(key)
        if recording is None:
            recording = self._kept[key] = self._record(*key, inputs)
            if len(self._kept) > _MOST_KEPT:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        for caches in sessions:
            caches.begin()
        recording.fill(inputs, tables, [caches.length for caches in sessions])
        out = recording.run()[: len(sessions)]
        for caches in sessions:
            caches.take_row()
        return out

    def _record(self, rows: int, pages: int, logits: bool, like: torch.Tensor) -> _Recording:
        model, device = self._model, self._model.device
        inputs = torch.zeros(rows, *like.shape[1:], dtype=like.dtype, device=device)
        places = torch.full((rows, pages + 1), BLANK, device=device)

        def forward() -> torch.Tensor:
            caches = PoolCaches(self.pool, self._windows, places[:, :-1], places[:, -1], model.attention)
            if logits:
                return model.logits(self.span, caches, inputs, 1)[:, 0]
            return model.hidden(self.span, caches, inputs)[:, 0]

        if device.type != "cuda":
            return _Recording(inputs, places, forward)
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            forward()  # libraries make room for themselves, which cannot be recorded
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        # The process's other threads may use the device meanwhile.
        with torch.cuda.graph(graph, pool=self._memory, capture_error_mode="thread_local"):
            out = forward()
        self._memory = graph.pool()
        return _Recording(inputs, places, _replayed(graph, out))


def _replayed(graph: torch.cuda.CUDAGraph, out: torch.Tensor) -> Callable[[], torch.Tensor]:
    def replay() -> torch.Tensor:
        graph.replay()
        return out

    return replay


class _Recording:
    """A forward, and where it reads from. places [rows, pages + 1]: a session's pages, and its length."""

    def __init__(self, inputs: torch.Tensor, places: torch.Tensor, run: Callable[[], torch.Tensor]) -> None:
        self._inputs = inputs
        self._places = places
        self.run = run

    def fill(self, inputs: torch.Tensor, tables: Sequence[Sequence[int]], lengths: Sequence[int]) -> None:
        """Point it at these sessions; rows beyond them stand for nobody."""
        places = torch.full(self._places.shape, BLANK)
        places[:, 0] = SPARE
        places[:, -1] = 0
        for row, (table, length) in enumerate(zip(tables, lengths, strict=True)):
            places[row, : len(table)] = torch.tensor(table)
            places[row, -1] = length
        self._places.copy_(places)
        self._inputs[: len(inputs)].copy_(inputs)


def _above(count: int) -> int:
    """The next power of two."""
    return 1 << (count - 1).bit_length()
