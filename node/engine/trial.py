"""A loaded span, tried out before it serves: stage by stage, and rows of several sessions together."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final

import torch

from node.engine.cache import LayerCaches, SpanCache
from node.engine.pool import Pool
from node.engine.replay import Replay
from node.engine.rows import RowCaches
from node.engine.skeleton import probing
from node.engine.sources import first_line
from node.engine.split import SplitModel
from protocol.errors import UnsupportedModel
from protocol.model import Span

logger = logging.getLogger(__name__)

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
        return self._rows_agree(
            None, lambda sessions, rows: self._run(self._span, self._model.together(sessions), rows)[:, 0]
        )

    @torch.inference_mode()
    def replay_agrees(self, replay: Replay) -> bool:
        """Whether recorded rows give what they give alone, within rounding; twice, so that one is a replay."""
        head = self._model.has_head(self._span)
        return all(
            self._rows_agree(
                replay.pool, lambda sessions, rows: replay.run(sessions, rows.cpu(), logits=head).clone()
            )
            for _ in range(2)
        )

    def _rows_agree(
        self, pool: Pool | None, run: Callable[[list[LayerCaches], torch.Tensor], torch.Tensor]
    ) -> bool:
        rows = self._sample(_TOKENS).transpose(0, 1)
        alone, together = (self._filled(pool) for pool in (None, pool))
        expected = [self._run(self._span, c.layers, rows[i : i + 1])[:, 0] for i, c in enumerate(alone)]
        try:
            found = run([cache.layers for cache in together], rows)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # a family's code fails as it likes where it meets what it does not know
            what = f"{type(error).__name__}: {first_line(error)}"
            logger.warning("rows of sessions cannot be %s: %s", "recorded" if pool else "joined", what)
            logger.debug("what failed", exc_info=True)
            return False
        finally:
            for cache in together:
                cache.close()
        if _close(torch.cat(expected), found, _ROUNDING[self._model.dtype]):
            return True
        logger.warning("rows of sessions are %s not what they are alone", "recorded" if pool else "joined")
        return False

    def _filled(self, pool: Pool | None) -> list[SpanCache]:
        """Caches of one row, of two, and so on."""
        caches = [self._model.new_cache(self._span, pool=pool) for _ in range(_TOKENS)]
        for length, cache in enumerate(caches, 1):
            self._run(self._span, cache.layers, self._sample(length))
        return caches

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
