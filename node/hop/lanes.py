"""The caches of what a session holds side by side, and the calls that a step makes of them. For the worker thread.

A plain step is one call on lane 0. One of several lanes is a call for each, all in one batch; before the first of
them its ended lanes are closed and its new ones forked, so that all parents are as they were before the step. From
then on the session leaves nothing to others: what it left until then is a prefix of all its lanes.
"""

from __future__ import annotations

from node.compute.casting import cast_hidden
from node.compute.interfaces import Call, Engine, KvCache
from node.compute.scheduler import Piece
from node.hop.backlog import Pending
from node.hop.forks import CannotFork, History
from node.hop.reuse import Reuse
from node.hop.steps import Shape, piece_want
from protocol.messages import Lane, Step


class Lanes:
    """Of one session."""

    def __init__(self, engine: Engine, shape: Shape, reuse: Reuse) -> None:
        self._engine = engine
        self._shape = shape
        self._reuse = reuse
        self._caches: dict[int, KvCache] = {}
        self._history = History()  # of lane 0

    def calls(self, pending: Pending, piece: Piece) -> list[Call]:
        """What runs a piece of a step. Raises: whatever a cache raises."""
        step = pending.step
        if not step.lanes:
            return [self._plain_call(pending, piece)]
        if piece.start == 0:
            self._begin(pending)
        calls, start = [], 0
        for lane in step.lanes:
            first, last = max(start, piece.start), min(start + lane.rows, piece.stop)
            if first < last:
                calls.append(self._call(pending, lane, start, (first, last)))
            start += lane.rows
        return calls

    def take(self, other: Lanes, position: int, after: int) -> None:
        """Begin with what lane 0 of another session has of its first `position` positions, as the steps below
        `after` left it. Raises: CannotFork, and whatever the cache raises."""
        cache = other._caches.get(0)
        if cache is None or not 1 <= position <= min(cache.length, self._shape.max_tokens):
            raise CannotFork("that session has something else")
        if not other._history.stands(after, position):
            raise CannotFork("that session has gone back since")
        self._caches[0] = cache.fork(position)
        self._reuse.fork(other._reuse, position)
        self._history = History(after)

    def close(self) -> None:
        """Give everything back, and leave to others what may be left."""
        caches, self._caches = self._caches, {}
        try:
            if 0 in caches:
                self._reuse.end(caches[0])
        finally:
            for cache in caches.values():
                cache.close()

    def _plain_call(self, pending: Pending, piece: Piece) -> Call:
        position, inputs = pending.position + piece.start, pending.step.inputs
        if piece.start == 0:
            self._end(pending.step)
        cache = self._first_cache(position)
        self._history.note(pending.step.number, pending.step.position)
        if piece.rows < inputs.rows:
            inputs = inputs.row_slice(piece.start, piece.stop)
        pending.filled += self._reuse.enter(cache, position, inputs)
        if not self._shape.takes_tokens:
            inputs = cast_hidden(inputs, self._engine.dtype)
        return Call(cache, position, inputs, piece_want(pending.want, last=piece.last))

    def _call(self, pending: Pending, lane: Lane, begin: int, rows: tuple[int, int]) -> Call:
        """Rows of a step, of a lane whose own begin at `begin`."""
        inputs = pending.step.inputs.row_slice(*rows)
        if not self._shape.takes_tokens:
            inputs = cast_hidden(inputs, self._engine.dtype)
        want = piece_want(pending.want, last=rows[1] == begin + lane.rows)
        return Call(self._caches[lane.name], lane.position + rows[0] - begin, inputs, want)

    def _begin(self, pending: Pending) -> None:
        step = pending.step
        first = self._first_cache(self._reuse.length)
        pending.filled += self._reuse.leave_off(first)
        self._end(step)
        begun: dict[int, KvCache] = {}
        try:
            for lane in step.lanes:
                if lane.name == 0:
                    self._history.note(step.number, lane.position)
                if lane.parent is not None:
                    begun[lane.name] = self._caches[lane.parent].fork(lane.position)
        except BaseException:
            for cache in begun.values():
                cache.close()
            raise
        for name, cache in begun.items():
            self._forget(name)
            self._caches[name] = cache

    def _end(self, step: Step) -> None:
        for name in step.ended:
            self._forget(name)

    def _forget(self, name: int) -> None:
        cache = self._caches.pop(name, None)
        if cache is not None:
            cache.close()

    def _first_cache(self, position: int) -> KvCache:
        """That of lane 0, which begins with what was taken of positions below `position`."""
        if 0 not in self._caches:
            self._caches[0] = self._engine.new_cache(self._shape.span, self._shape.max_tokens)
            self._reuse.begin(self._caches[0], position)
        return self._caches[0]
