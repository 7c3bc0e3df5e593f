"""A loaded span, tried out before it serves: stage by stage, and rows of several sessions together."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import torch

from node.engine.cache import LayerCaches, SpanCache
from node.engine.rows import RowCaches
from node.engine.skeleton import probing
from node.engine.split import SplitModel
from protocol.errors import UnsupportedModel
from protocol.model import Span

_TOKENS: Final = 3
# Largest difference of what is computed together from what is computed alone, by norms: sums in another order.
_ROUNDING: Final = {torch.float32: 1e-4, torch.float16: 0.05, torch.bfloat16: 0.05}


class Trial:
    """The stages of `span` of a loaded model, run on made-up inputs."""

    def __init__(self, model: SplitModel, span: Span) -> None:
        self._model = model
        self._span = span

    @torch.inference_mode()
    def kv_bytes(self) -> int:
        """Bytes of keys and values of one position; runs the span at once and stage by stage.

        Both must agree, on the CPU to the bit: layers that hand each other more than hidden states show here.
        Raises: UnsupportedModel.
        """
        whole = self._new_cache()
        parts = [self._model.new_cache(Span(stage, stage + 1)) for stage in self._span]
        with probing(self._model.config):
            for tokens in (_TOKENS, 1):
                inputs = self._sample(tokens)
                expected = self._run(whole.span, whole.layers, inputs)
                for part in parts:
                    inputs = self._run(part.span, part.layers, inputs)
                if not _same(expected, inputs):
                    kind = self._model.config.model_type
                    raise UnsupportedModel(
                        f"{kind} cannot be split: its layers share more than hidden states"
                    )
        return whole.layers.bytes_per_token()

    @torch.inference_mode()
    def rows_agree(self) -> bool:
        """Whether rows of sessions of different lengths give together what they give alone, within rounding."""
        lengths = range(1, _TOKENS + 1)
        rows = self._sample(_TOKENS).transpose(0, 1)
        alone = [self._run(self._span, caches, rows[i : i + 1]) for i, caches in self._filled(lengths)]
        sessions = [caches for _, caches in self._filled(lengths)]
        try:
            together = self._run(self._span, self._model.together(sessions), rows)
        except torch.OutOfMemoryError:
            raise
        except Exception:  # noqa: BLE001 - a family's code fails as it likes where it meets what it does not know
            return False
        return _close(torch.cat(alone), together, _ROUNDING[self._model.dtype])

    def _filled(self, lengths: range) -> Iterator[tuple[int, LayerCaches]]:
        for place, length in enumerate(lengths):
            cache = self._new_cache()
            self._run(self._span, cache.layers, self._sample(length))
            yield place, cache.layers

    def _new_cache(self) -> SpanCache:
        return self._model.new_cache(self._span)

    def _sample(self, tokens: int) -> torch.Tensor:
        model = self._model
        if self._span.start == 0:
            return torch.arange(tokens, device=model.device)[None] % model.vocab_size
        generator = torch.Generator().manual_seed(0)
        states = torch.randn(1, tokens, model.hidden_size, generator=generator)
        return states.to(device=model.device, dtype=model.dtype)

    def _run(self, span: Span, caches: LayerCaches | RowCaches, inputs: torch.Tensor) -> torch.Tensor:
        if self._model.has_head(span):
            return self._model.logits(span, caches, inputs, 0)
        return self._model.hidden(span, caches, inputs)


def _same(one: torch.Tensor, other: torch.Tensor) -> bool:
    if one.device.type == "cpu":
        return torch.allclose(one, other, rtol=0, atol=0, equal_nan=True)
    # Elsewhere sums run in no fixed order; what layers keep from each other makes more of a difference.
    return _close(one, other, 0.05)


def _close(one: torch.Tensor, other: torch.Tensor, most: float) -> bool:
    one, other = one.float().nan_to_num(), other.float().nan_to_num()
    return bool((one - other).norm() <= most * one.norm())
