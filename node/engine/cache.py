"""Keys and values of one session, for the blocks of one span, in the shape that transformers' layers expect.

A cache has a slot for every layer of the model, by absolute index. The span's slots hold tensors in buffers that
grow ahead of need (transformers concatenates the whole cache for every token); the others only know the length,
which masks are made from.
"""

from __future__ import annotations

import copy
import sys
from typing import TYPE_CHECKING, Any, Final

import torch
from transformers.cache_utils import (
    CacheLayerMixin,
    DynamicCache,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionCacheLayerMixin,
)

from node.compute.interfaces import GROWTH_TOKENS
from node.engine.pool import PAGE, Pages, Pool, PooledRows
from protocol.errors import LocalProtocolError, UnsupportedModel
from protocol.model import Span

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

_FIRST_TOKENS: Final = 64
# Doubling up to here; beyond, by so much: the copy costs below 1 % of the attention that it serves.
_MOST_AHEAD: Final = GROWTH_TOKENS
_NO_WAY_BACK: Final = "a model with recurrent layers cannot go back to an earlier position"


class _Buffers:
    """Keys and values [1, heads, capacity, width], of which the first `held` rows count; at most `most` will."""

    __slots__ = ("capacity", "held", "keys", "most", "values")

    def __init__(self, most: int) -> None:
        self.most = most
        self.held = self.capacity = 0
        self.keys: torch.Tensor | None = None
        self.values: torch.Tensor | None = None

    def append(
        self, keys: torch.Tensor, values: torch.Tensor, past: int | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Add rows; views of the last `past` rows before them (None: of all) and of the new ones."""
        held, count = self.held, keys.shape[-2]
        stop = held + count
        if self.keys is None or self.values is None or stop > self.capacity:
            self._grow(keys, values, stop)
        assert self.keys is not None
        assert self.values is not None
        self.keys.narrow(2, held, count).copy_(keys)
        self.values.narrow(2, held, count).copy_(values)
        self.held = stop
        first = 0 if past is None else max(held - past, 0)
        return self.keys.narrow(2, first, stop - first), self.values.narrow(2, first, stop - first)

    def _grow(self, keys: torch.Tensor, values: torch.Tensor, tokens: int) -> None:
        unit = min(max(self.capacity, _FIRST_TOKENS), _MOST_AHEAD)
        self.capacity = max(tokens, min(-(-tokens // unit) * unit, self.most))
        self.keys = self._moved(self.keys, keys)
        self.values = self._moved(self.values, values)

    def _moved(self, old: torch.Tensor | None, like: torch.Tensor) -> torch.Tensor:
        new = like.new_empty(*like.shape[:2], self.capacity, like.shape[3])
        if old is not None:
            new.narrow(2, 0, self.held).copy_(old.narrow(2, 0, self.held))
        return new

    def first(self, rows: int) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Views of the first `rows` rows; None if there are none."""
        if self.keys is None or self.values is None or not rows:
            return None
        return self.keys.narrow(2, 0, rows), self.values.narrow(2, 0, rows)

    def bytes_per_token(self) -> int:
        """Memory that one row takes."""
        both = (self.keys, self.values)
        return sum(t.shape[1] * t.shape[3] * t.element_size() for t in both if t is not None)


class _FullSlot(DynamicLayer):
    """A layer that attends to everything."""

    def __init__(self, buffers: _Buffers | PooledRows) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.buffers = buffers

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        self.is_initialized = True
        self.keys, self.values = self.buffers.append(key_states, value_states, None)
        return self.keys, self.values

    def get_seq_length(self) -> int:
        return self.buffers.held


class _WindowSlot(DynamicSlidingWindowLayer):
    """A layer that attends to a window. All rows are kept, so that any position can be gone back to."""

    def __init__(self, sliding_window: int, buffers: _Buffers | PooledRows) -> None:
        self.buffers = buffers
        super().__init__(sliding_window=sliding_window)

    @property
    def cumulative_length(self) -> int:
        """Rows held; the base class makes its mask sizes from it."""
        return self.buffers.held

    @cumulative_length.setter
    def cumulative_length(self, value: int) -> None:
        pass  # the base class sets 0 as it begins

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        self.is_initialized = True
        past = self.sliding_window - 1
        self.keys, self.values = self.buffers.append(key_states, value_states, past)
        return self.keys, self.values


class _FullShadow(DynamicLayer):
    """The slot of a layer that is not run here."""

    def __init__(self, caches: LayerCaches) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._caches = caches

    def get_seq_length(self) -> int:
        return self._caches.length


class _WindowShadow(DynamicSlidingWindowLayer):
    """The slot of a layer with a window that is not run here."""

    def __init__(self, caches: LayerCaches, sliding_window: int) -> None:
        self._caches = caches
        super().__init__(sliding_window=sliding_window)

    @property
    def cumulative_length(self) -> int:
        """Rows it would hold."""
        return self._caches.length

    @cumulative_length.setter
    def cumulative_length(self, value: int) -> None:
        pass  # the base class sets 0 as it begins


class LayerCaches(DynamicCache):
    """Slots for all layers of a model; those in `owned` hold tensors.

    `length` is the number of positions before the forward that is running, and the same for all slots.
    Slots and this know each other: `forget` frees the tensors without waiting for a collection.
    """

    def __init__(
        self,
        config: PreTrainedConfig,
        owned: frozenset[int],
        max_tokens: int = sys.maxsize,
        pages: Pages | None = None,
    ) -> None:
        super().__init__(config=config)
        self._pages = pages
        self.length = 0
        self.torn = False  # a forward failed after some layers had taken its rows
        self._owned = owned
        self._max_tokens = max_tokens
        # Without types of layers in the configuration transformers would add slots as they are used.
        self.layer_class_to_replicate = None
        blocks = config.get_text_config(decoder=True).num_hidden_layers
        count = max(blocks, 1 + max(owned, default=0))
        kinds = [*self.layers, *(DynamicLayer() for _ in range(count - len(self.layers)))]
        self.layers = [self._slot(kind, index, index in owned) for index, kind in enumerate(kinds)]

    def _rows(self, index: int) -> _Buffers | PooledRows:
        return _Buffers(self._max_tokens) if self._pages is None else PooledRows(self._pages, index)

    def _slot(self, kind: Any, index: int, owned: bool) -> Any:
        if type(kind) is DynamicSlidingWindowLayer:
            window = kind.sliding_window
            return _WindowSlot(window, self._rows(index)) if owned else _WindowShadow(self, window)
        if type(kind) is DynamicLayer:
            return _FullSlot(self._rows(index)) if owned else _FullShadow(self)
        if isinstance(kind, CacheLayerMixin) and not owned:
            return _FullShadow(self)
        return kind

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.length

    def has_previous_state(self, layer_idx: int | None = None, state_idx: int | None = None) -> bool:
        if layer_idx is None or layer_idx not in self._owned:
            return self.length > 0
        return bool(super().has_previous_state(layer_idx, state_idx))

    def copy_into(self, other: LayerCaches, position: int) -> None:
        """Let `other`, which is empty and of the same layers, hold the first `position` rows of what this holds."""
        for index in self._owned:
            slot, new = self.layers[index], other.layers[index]
            if isinstance(slot, _FullSlot | _WindowSlot):
                assert isinstance(new, _FullSlot | _WindowSlot), "the two are of one configuration"
                held = slot.buffers.first(position)
                if held is not None:
                    new.buffers.append(*held, None)
                new.is_initialized = slot.is_initialized
            elif not _holds_nothing(slot):
                other.layers[index] = copy.deepcopy(slot)
        other.length = position

    def positions(self, tokens: int) -> torch.Tensor:
        """Where the next rows stand, [1, tokens]."""
        return torch.arange(self.length, self.length + tokens)[None]

    def begin(self) -> None:
        """A forward begins, of which layers may take rows before it fails."""
        self.torn = True

    def advance(self, tokens: int) -> None:
        """It went well: the rows count."""
        self.torn = False
        self.length += tokens

    def reserve(self, tokens: int) -> None:
        """Make sure of room for so many rows, where it is shared with other sessions. Raises: CacheFull."""
        if self._pages is not None:
            self._pages.reserve(tokens)

    def page_table(self) -> list[int]:
        """The pages that hold its rows and the next one. Raises: CacheFull."""
        assert self._pages is not None
        self._pages.reserve(self.length + 1)
        return self._pages.held[: self.length // PAGE + 1]

    def take_row(self) -> None:
        """Count a row that was put behind the others without this."""
        for index in self._owned:
            slot = self.layers[index]
            if isinstance(slot, _FullSlot | _WindowSlot):
                slot.is_initialized = True
                slot.buffers.held = self.length + 1
        self.advance(1)

    def windows(self) -> dict[int, int]:
        """The layers that see no further back than a window, and how far, themselves included."""
        slots = ((index, self.layers[index]) for index in self._owned)
        return {index: slot.sliding_window for index, slot in slots if isinstance(slot, _WindowSlot)}

    def forget(self) -> None:
        """Give the memory back; nothing else can be asked of this afterwards."""
        self.layers = []
        if self._pages is not None:
            self._pages.close()

    def can_cut(self) -> bool:
        """Whether every slot can go back to any position."""
        kept = (self.layers[index] for index in self._owned if index < len(self.layers))
        return all(isinstance(slot, _FullSlot | _WindowSlot) or _holds_nothing(slot) for slot in kept)

    def cut(self, position: int) -> None:
        """Forget every row from `position` on, also those of a forward that failed half-way."""
        for index in self._owned:
            slot = self.layers[index]
            if isinstance(slot, _FullSlot | _WindowSlot):
                slot.buffers.held = min(position, slot.buffers.held)
        self.length = position

    def bytes_per_token(self) -> int:
        """Memory that one position takes; fixed-size recurrent states count nothing."""
        return sum(self.slot_bytes(index) for index in self._owned)

    def slot_bytes(self, index: int) -> int:
        """The same, of one slot."""
        slot = self.layers[index]
        if isinstance(slot, _FullSlot | _WindowSlot):
            return slot.buffers.bytes_per_token()
        tensors: list[torch.Tensor | None]
        tensors = [getattr(slot, name, None) for name in ("keys", "values", "indexer_keys")]
        return sum(t.nbytes for t in tensors if t is not None) // max(self.length, 1)


def _holds_nothing(slot: Any) -> bool:
    return not isinstance(slot, CacheLayerMixin | LinearAttentionCacheLayerMixin)


class SpanCache:
    """One session's cache for the stages of `span`. Owned by whoever asked the engine for it; close it."""

    def __init__(
        self,
        config: PreTrainedConfig,
        span: Span,
        owned: frozenset[int],
        max_tokens: int | None = None,
        pool: Pool | None = None,
    ) -> None:
        self.span = span
        self._pool = pool
        self._config = config
        self._owned = owned
        self._max_tokens = sys.maxsize if max_tokens is None else max_tokens
        self.layers = self._empty()

    def _empty(self) -> LayerCaches:
        pages = None if self._pool is None else Pages(self._pool)
        return LayerCaches(self._config, self._owned, self._max_tokens, pages)

    @property
    def length(self) -> int:
        """Positions held."""
        return self.layers.length

    def cut(self, position: int) -> None:
        """Go back to `position`, which is at most `length`.

        Raises: UnsupportedModel, where a layer keeps a recurrent state, which cannot be wound back, unless to 0.
        After a forward that failed such a state is lost even if `position` is `length`.
        """
        if (position < self.layers.length or self.layers.torn) and not self.layers.can_cut():
            if position:
                raise UnsupportedModel(_NO_WAY_BACK)
            self.layers.forget()
            self.layers = self._empty()
        self.layers.cut(position)

    @torch.inference_mode()
    def fork(self, position: int) -> SpanCache:
        """Another cache with a copy of the first `position` positions.

        Raises: UnsupportedModel, as `cut`; CacheFull, where room is shared with other sessions.
        """
        if not 0 <= position <= self.length:
            raise LocalProtocolError(f"a fork at {position} of a cache of {self.length} positions")
        other = SpanCache(self._config, self.span, self._owned, self._max_tokens, self._pool)
        if (position < self.length or self.layers.torn) and not self.layers.can_cut():
            if position:
                raise UnsupportedModel(_NO_WAY_BACK)
            return other
        try:
            other.layers.reserve(position)
            self.layers.copy_into(other.layers, position)
        except BaseException:
            other.close()
            raise
        return other

    def close(self) -> None:
        """Give the memory back. Safe to call twice."""
        self.layers.forget()
        self.layers.length = 0
