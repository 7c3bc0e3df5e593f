"""What the node asks of an engine; `node.engine` has the real one, the tests a small one."""

from __future__ import annotations

from typing import Protocol

from protocol.candidates import Candidates, Want
from protocol.model import Manifest, Span
from protocol.numerics import Numerics
from protocol.tensors import Tensor


class KvCache(Protocol):
    """One session's keys and values, for the stages of `span`."""

    @property
    def span(self) -> Span:
        """The stages it is for."""

    @property
    def length(self) -> int:
        """Positions held."""

    def close(self) -> None:
        """Give the memory back. Safe to call twice."""


class Engine(Protocol):
    """The weights of one span. Every method may block for long: the worker thread alone calls them."""

    @property
    def span(self) -> Span:
        """The stages it holds."""

    @property
    def dtype(self) -> str:
        """Of the hidden states it takes and gives: "f32", "f16" or "bf16"."""

    @property
    def numerics(self) -> Numerics:
        """What it computes in, as it is announced."""

    @property
    def hidden_size(self) -> int:
        """Numbers per row of hidden states."""

    @property
    def manifest(self) -> Manifest:
        """The model it is part of."""

    @property
    def weight_bytes(self) -> int:
        """Memory that the weights take."""

    def kv_bytes_per_token(self) -> int:
        """Memory that one position of one session takes."""

    def new_cache(self, span: Span, max_tokens: int | None = None) -> KvCache:
        """An empty cache for stages within the engine's span; it never takes memory for more than `max_tokens`."""

    def step(self, cache: KvCache, position: int, inputs: Tensor, want: Want) -> Tensor | Candidates | None:
        """Cut `cache`, which this engine made, to `position`; run `inputs` through the cache's span.

        Returns hidden states [tokens, hidden_size] on the CPU where the span does not end with the head; where it
        does, the wanted candidates, or None if nothing is wanted.
        Raises: Malformed, if the inputs cannot be: their shape, dtype, a NaN, a token id out of the vocabulary.
        """
