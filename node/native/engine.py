"""The engine of a node on the native kernels: one span of one model, packed, and steps of sessions through it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from node.compute.inputs import check_context, check_dtype, check_hidden, check_want, token_ids
from node.compute.interfaces import Call, KvCache, StepResult
from node.native.blocks import Blocks
from node.native.cache import PagedCache
from node.native.checkpoint import NativeCheckpoint
from node.native.head import Head, Rows
from node.native.kernel import Kernel
from node.native.pages import PagePool
from node.native.weights import Loader
from protocol.candidates import Want
from protocol.errors import LocalProtocolError, Malformed
from protocol.model import Manifest, Span
from protocol.tensors import from_numpy


class NativeEngine:
    """See `node.compute.interfaces.Engine`. Everything but `load` is for one thread.

    Hidden states travel as f32, whatever the precision of the weights.
    """

    dtype = "f32"
    shares_pages = True
    goes_back = True

    def __init__(self, checkpoint: NativeCheckpoint, span: Span, kernel: Kernel) -> None:
        """Use `load`."""
        self.span = span
        self.manifest: Manifest = checkpoint.manifest
        if reach := checkpoint.plan.shape.reach:
            self.manifest = replace(self.manifest, context=min(reach, self.manifest.context))
        self.hidden_size = self.manifest.hidden_size
        self._shape = checkpoint.plan.shape
        self._last = self.manifest.stages - 1
        loader, precision = Loader(checkpoint, kernel), checkpoint.precision
        self.numerics = precision.numerics
        self._embedding = loader.embedding() if 0 in span else None
        self._head = Head(kernel, self._shape, loader.head()) if self._last in span else None
        first, stop = self._blocks_of(span)
        blocks = [loader.block(index) for index in range(first, stop)]
        self._blocks = Blocks(kernel, self._shape, first, blocks, precision.kv_bytes)
        self._row_bytes = self._shape.kv_row_bytes(precision.kv_bytes)
        self._pages = PagePool()

    @classmethod
    def load(cls, checkpoint: NativeCheckpoint, span: Span, kernel: Kernel) -> NativeEngine:
        """Pack the span's tensors, no others. Raises: BadCheckpoint; ConfigError, if there is no such span."""
        checkpoint.require(span)
        return cls(checkpoint, span, kernel)

    @property
    def weight_bytes(self) -> int:
        """Memory that the weights take; the embedding is mapped, not copied."""
        head = 0 if self._head is None else self._head.nbytes
        embedding = 0 if self._embedding is None else self._embedding.nbytes
        return embedding + self._blocks.nbytes + head

    def kv_bytes_per_token(self) -> int:
        """Memory that one position of one session over the whole span takes."""
        return len(self._blocks) * self._row_bytes

    def new_cache(self, span: Span, max_tokens: int | None = None) -> PagedCache:
        """An empty cache for one session of at most `max_tokens` over `span`, which is within the engine's span."""
        if not self.span.covers(span):
            raise LocalProtocolError(f"span {span} asked of an engine that holds {self.span}")
        first, stop = self._blocks_of(span)
        return PagedCache(span, stop - first, self._row_bytes, max_tokens, self._pages)

    def run(self, calls: Sequence[Call]) -> list[StepResult | Exception]:
        """See `node.compute.interfaces.Engine`. Calls of the same blocks go through them, and the head, together.

        A result has the bits that its call gives alone.
        """
        results: list[StepResult | Exception] = [None] * len(calls)
        groups: dict[tuple[int, int], list[_Entered]] = {}
        for place, call in enumerate(calls):
            try:
                entered = self._enter(place, call)
            except Malformed as error:
                results[place] = error
            else:
                groups.setdefault(self._blocks_of(call.cache.span), []).append(entered)
        for (first, stop), group in groups.items():
            self._run_blocks(group, first, stop)
            self._leave(group, results)
        return results

    def _enter(self, place: int, call: Call) -> _Entered:
        """Check a call and look its states up. Raises: Malformed."""
        cache, inputs = call.cache, call.inputs
        if not isinstance(cache, PagedCache):
            raise LocalProtocolError("a cache that this engine did not make")
        if not 0 <= call.position <= cache.length:
            raise Malformed(f"a step at position {call.position}, the cache ends at {cache.length}")
        if cache.span.start > 0 or self._embedding is None:
            check_hidden(inputs, self.hidden_size)
            check_dtype(inputs, self.dtype)
            states: Rows = inputs.numpy()
        else:
            states = self._embedding.pick(token_ids(inputs, self.manifest.vocab_size))
            if self._shape.embedding_scale != 1.0:
                states *= np.float32(self._shape.embedding_scale)
        check_context(call.position, inputs, self.manifest.context)
        if self._ends(cache):
            check_want(call.want, self.manifest.vocab_size)
        return _Entered(place, cache, call.position, states, call.want)

    def _run_blocks(self, group: Sequence[_Entered], first: int, stop: int) -> None:
        """Run rows through blocks first:stop, in memory of their own."""
        rows = []
        for entered in group:
            # Rows that fail half-way leave nothing that counts.
            entered.cache.length = entered.position
            if first < stop:
                entered.cache.reserve(entered.position, entered.end)
            rows.append((entered.cache, entered.position, len(entered.states)))
        states = np.concatenate([entered.states for entered in group])
        if first < stop:
            self._blocks.run(states, rows, first, stop - first)
        at = 0
        for entered in group:
            entered.cache.length = entered.end
            entered.states = states[at : at + len(entered.states)]
            at += len(entered.states)

    def _leave(self, group: Sequence[_Entered], results: list[StepResult | Exception]) -> None:
        """Put what a group gives in its places."""
        asked = []
        for entered in group:
            if not self._ends(entered.cache):
                # A view would keep the rows of all sessions for as long as one of them lasts.
                own = entered.states if len(group) == 1 else entered.states.copy()
                results[entered.place] = from_numpy(own)
            elif entered.want.kind != "nothing":
                asked.append(entered)
        if asked and self._head is not None:
            found = self._head.candidates([(entered.wanted, entered.want) for entered in asked])
            for entered, answer in zip(asked, found, strict=True):
                results[entered.place] = answer

    def _ends(self, cache: KvCache) -> bool:
        return cache.span.stop > self._last

    def _blocks_of(self, span: Span) -> tuple[int, int]:
        """The blocks of a span, half-open, numbered from 0."""
        first = max(span.start, 1) - 1
        return first, max(first, min(span.stop, self._last) - 1)


@dataclass(slots=True)
class _Entered:
    """A call that can be, on its way: its place among the calls, and where its states have got to."""

    place: int
    cache: PagedCache
    position: int
    states: Rows
    want: Want

    @property
    def end(self) -> int:
        return self.position + len(self.states)

    @property
    def wanted(self) -> Rows:
        return self.states if self.want.every else self.states[-1:]
