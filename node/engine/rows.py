"""Decode steps of several sessions in one forward of the family's: a batch of rows, one of each session.

Everything but attention treats rows alone, so the weights are read once for all of them. Keys and values differ in
length from session to session: each row is appended to its own session's cache, and attention runs once for each
session, by the function that the family would have called. A single row attends to all that its cache gives, so no
masks are made. Whether a family can be run like this is tried out, not known: see `batching`.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final

import torch

from node.engine.cache import LayerCaches

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Of the attention function. transformers makes no masks for a name that its registry of masks does not have.
_NAME: Final = "rows_of_sessions"


class _Rows:
    """In place of the keys or the values of a batch: those of each session, [1, heads, positions, width]."""

    __slots__ = ("attention", "each")

    def __init__(self, each: Sequence[torch.Tensor], attention: str) -> None:
        self.each = each
        self.attention = attention  # the name of the family's own function


class Gathered:
    """In place of the keys or the values of a batch: all of them, [sessions, heads, positions, width], and a mask."""

    __slots__ = ("attention", "mask", "states")

    def __init__(self, states: torch.Tensor, mask: torch.Tensor, attention: str) -> None:
        self.states = states
        self.mask = mask
        self.attention = attention  # as above


class RowCaches:
    """In place of one session's caches: row b of a batch goes to session b's.

    It has nothing else of a cache, so that a family which asks for more fails instead of going wrong.
    """

    is_compileable = False

    def __init__(self, sessions: Sequence[LayerCaches], attention: str) -> None:
        self.sessions = sessions
        self._attention = attention

    def update(
        self, keys: torch.Tensor, values: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[_Rows, _Rows]:
        """Append row b of keys and values [sessions, heads, 1, width] to the cache of session b."""
        held = [
            self._slots(caches)[layer_idx].update(keys[row : row + 1], values[row : row + 1])
            for row, caches in enumerate(self.sessions)
        ]
        each_keys, each_values = zip(*held, strict=True)
        return _Rows(each_keys, self._attention), _Rows(each_values, self._attention)

    @staticmethod
    def _slots(caches: LayerCaches) -> Sequence[Any]:
        return caches.layers

    def positions(self, tokens: int) -> torch.Tensor:
        """Where the next row of each session stands, [sessions, 1]."""
        assert tokens == 1
        return torch.tensor([[caches.length] for caches in self.sessions])

    def begin(self) -> None:
        """See `LayerCaches.begin`."""
        for caches in self.sessions:
            caches.begin()

    def advance(self, tokens: int) -> None:
        """See `LayerCaches.advance`."""
        for caches in self.sessions:
            caches.advance(tokens)


class RowAttention:
    """Has a model's layers attend session by session, while it is asked to."""

    def __init__(self, model: PreTrainedModel) -> None:
        from transformers import AttentionInterface, PreTrainedConfig

        AttentionInterface.register(_NAME, _attend)
        decoder = model.config.get_text_config(decoder=True)
        own = decoder._attn_implementation
        self.name: str = own if isinstance(own, str) else "eager"
        configs = (getattr(module, "config", None) for module in model.modules())
        found = [config for config in configs if isinstance(config, PreTrainedConfig)]
        self._configs = {id(config): config for config in (*found, decoder)}.values()

    @contextlib.contextmanager
    def by_session(self) -> Iterator[None]:
        """Until the end of the context, keys and values are `RowCaches`'."""
        before = [config._attn_implementation_internal for config in self._configs]
        try:
            for config in self._configs:
                config._attn_implementation_internal = _NAME
            yield
        finally:
            for config, name in zip(self._configs, before, strict=True):
                config._attn_implementation_internal = name


def _attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: _Rows | Gathered,
    value: _Rows | Gathered,
    attention_mask: torch.Tensor | None,
    *args: Any,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of one query [sessions, heads, 1, width] for each session to its own keys and values."""
    if attention_mask is not None:
        raise TypeError("a family that masks single rows cannot have them in a batch")
    attend = _family_function(module, key.attention)
    if isinstance(key, Gathered) and isinstance(value, Gathered):
        out: torch.Tensor = attend(module, query, key.states, value.states, key.mask, *args, **kwargs)[0]
        return out, None
    assert isinstance(key, _Rows)
    assert isinstance(value, _Rows)
    each = [
        attend(module, query[row : row + 1], keys, values, None, *args, **kwargs)[0]
        for row, (keys, values) in enumerate(zip(key.each, value.each, strict=True))
    ]
    return torch.cat(each), None


def _family_function(module: torch.nn.Module, name: str) -> Any:
    """What a module of this family calls to attend."""
    code: Any = sys.modules[type(module).__module__]
    return code.ALL_ATTENTION_FUNCTIONS.get_interface(name, code.eager_attention_forward)
