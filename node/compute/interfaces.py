"""What the node asks of an engine; `node.engine` has the real one, the tests a small one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from protocol.candidates import Candidates, Want
from protocol.model import Manifest, Span
from protocol.numerics import Numerics
from protocol.tensors import Tensor

StepResult = Tensor | Candidates | None
# Sessions are charged by so many positions at a time, and a cache takes memory for no more beyond what it holds.
GROWTH_TOKENS: Final = 256

# Positions of a page of keys and values.
PAGE_POSITIONS: Final = 256


class KvPage(Protocol):
    """Keys and values of at most PAGE_POSITIONS positions, which caches and others hold together."""

    @property
    def nbytes(self) -> int:
        """Memory that it takes."""

    def release(self) -> None:
        """One holder less. For the worker thread."""


class KvCache(Protocol):
    """One session's keys and values, for the stages of `span`."""

    @property
    def span(self) -> Span:
        """The stages it is for."""

    @property
    def length(self) -> int:
        """Positions held."""

    def fork(self, position: int) -> KvCache:
        """Another cache that begins with the first `position` positions of this one, at most `length`.

        What either does from then on, the other does not see. Raises: UnsupportedModel, where a recurrent state would
        have to be wound back.
        """

    def close(self) -> None:
        """Give the memory back. Safe to call twice."""


class PagedKv(KvCache, Protocol):
    """A cache whose pages others may hold too; nobody writes to one that others hold."""

    def pages(self, start: int, stop: int) -> Sequence[KvPage]:
        """The pages of start:stop, `start` a multiple of PAGE_POSITIONS, `stop` at most `length`; the caller holds
        them from now on. None at all, if the span has no blocks."""

    def adopt(self, pages: Sequence[KvPage], length: int) -> None:
        """Begin with `length` positions on pages of another cache of the same span; the caller still holds them."""


@dataclass(frozen=True, slots=True)
class Call:
    """Rows of one session for its cache: cut it to `position`, run `inputs` through its span, append to it."""

    cache: KvCache
    position: int
    inputs: Tensor
    want: Want


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

    @property
    def shares_pages(self) -> bool:
        """Whether its caches are PagedKv."""

    @property
    def goes_back(self) -> bool:
        """Whether its caches can be cut to any position: no layer keeps a state that only goes on."""

    def kv_bytes_per_token(self) -> int:
        """Memory that one position of one session takes."""

    def new_cache(self, span: Span, max_tokens: int | None = None) -> KvCache:
        """An empty cache for stages within the engine's span; it never takes memory for more than `max_tokens`."""

    def run(self, calls: Sequence[Call]) -> list[StepResult | Exception]:
        """Run calls of different sessions, each on a cache that this engine made; what they give, in order.

        Hidden states [tokens, hidden_size] on the CPU where a span does not end with the head, in memory that no
        two results share; where it does, the wanted candidates, or None if nothing is wanted. A call that fails has
        its error in its place, Malformed where the sender is at fault, and changes nothing for the others.
        Where the engine cannot tell which failed it raises: each can then be run again, by itself.
        """
