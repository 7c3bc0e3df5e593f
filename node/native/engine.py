"""The engine of a node on the native kernels: one span of one model, packed, and a step of one session through it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from node.compute.inputs import check_context, check_dtype, check_hidden, check_want, token_ids
from node.compute.interfaces import KvCache
from node.native.blocks import Blocks
from node.native.cache import PagedCache
from node.native.checkpoint import NativeCheckpoint
from node.native.head import candidates
from node.native.kernel import Kernel
from node.native.weights import Loader
from protocol.candidates import Candidates, Want
from protocol.errors import LocalProtocolError, Malformed
from protocol.model import Manifest, Span
from protocol.tensors import Tensor, from_numpy


class NativeEngine:
    """See `node.compute.interfaces.Engine`. Everything but `load` is for one thread.

    Hidden states travel as f32, whatever the precision of the weights.
    """

    dtype = "f32"

    def __init__(self, checkpoint: NativeCheckpoint, span: Span, kernel: Kernel) -> None:
        """Use `load`."""
        self.span = span
        self.manifest: Manifest = checkpoint.manifest
        self.hidden_size = self.manifest.hidden_size
        self._kernel = kernel
        self._shape = checkpoint.plan.shape
        self._last = self.manifest.stages - 1
        loader, precision = Loader(checkpoint, kernel), checkpoint.precision
        self.numerics = precision.numerics
        self._embedding = loader.embedding() if 0 in span else None
        self._head = loader.head() if self._last in span else None
        first, stop = self._blocks_of(span)
        blocks = [loader.block(index) for index in range(first, stop)]
        self._blocks = Blocks(kernel, self._shape, first, blocks, precision.kv_bytes)
        self._row_bytes = self._shape.kv_row_bytes(precision.kv_bytes)

    @classmethod
    def load(cls, checkpoint: NativeCheckpoint, span: Span, kernel: Kernel) -> NativeEngine:
        """Pack the span's tensors, no others. Raises: BadCheckpoint; ConfigError, if there is no such span."""
        checkpoint.require(span)
        return cls(checkpoint, span, kernel)

    @property
    def weight_bytes(self) -> int:
        """Memory that the weights take; the embedding is mapped, not copied."""
        head = 0 if self._head is None else self._head.matrix.nbytes + self._head.norm.nbytes
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
        return PagedCache(span, stop - first, self._row_bytes, max_tokens)

    def step(self, cache: KvCache, position: int, inputs: Tensor, want: Want) -> Tensor | Candidates | None:
        """See `node.compute.interfaces.Engine`."""
        if not isinstance(cache, PagedCache):
            raise LocalProtocolError("a cache that this engine did not make")
        if not 0 <= position <= cache.length:
            raise Malformed(f"a step at position {position}, the cache ends at {cache.length}")
        states = self._enter(cache.span, inputs)
        check_context(position, inputs, self.manifest.context)
        ends = cache.span.stop > self._last
        if ends:
            check_want(want, self.manifest.vocab_size)
        self._run(cache, position, states)
        if not ends:
            return from_numpy(states)
        if want.kind == "nothing" or self._head is None:
            return None
        shape = self._shape
        wanted = states if want.every else states[-1:]
        return candidates(self._kernel, self._head, shape.epsilon, shape.logits_divisor, wanted, want)

    def _enter(self, span: Span, inputs: Tensor) -> NDArray[np.float32]:
        """The states that enter the span's first block, in memory of their own. Raises: Malformed."""
        if span.start > 0 or self._embedding is None:
            check_hidden(inputs, self.hidden_size)
            check_dtype(inputs, self.dtype)
            return inputs.numpy().copy()
        rows = self._embedding.pick(token_ids(inputs, self.manifest.vocab_size))
        scale = self._shape.embedding_scale
        return rows if scale == 1.0 else rows * np.float32(scale)

    def _run(self, cache: PagedCache, position: int, states: NDArray[np.float32]) -> None:
        first, stop = self._blocks_of(cache.span)
        end = position + len(states)
        # Rows that fail half-way leave nothing that counts.
        cache.length = position
        if first < stop:
            cache.reserve(end)
            self._blocks.run(states, [(cache, position, len(states))], first, stop - first)
        cache.length = end

    def _blocks_of(self, span: Span) -> tuple[int, int]:
        """The blocks of a span, half-open, numbered from 0."""
        first = max(span.start, 1) - 1
        return first, max(first, min(span.stop, self._last) - 1)
