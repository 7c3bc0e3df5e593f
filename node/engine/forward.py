"""Calls of a model's own forward with exactly the arguments it knows."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import nn

from node.engine.cache import LayerCaches
from protocol.errors import UnsupportedModel

if TYPE_CHECKING:
    from transformers import PreTrainedModel


# The second is what families without attention call their state.
_CACHES: Final = {"past_key_values", "cache_params"}


class Forward:
    """The forward of the decoder alone and of the whole model, head included."""

    def __init__(self, model: PreTrainedModel, decoder: nn.Module) -> None:
        """Raises: UnsupportedModel, if the family keeps no cache."""
        self._model = model
        self._decoder = decoder
        self._model_takes = frozenset(inspect.signature(model.forward).parameters)
        self._decoder_takes = frozenset(inspect.signature(decoder.forward).parameters)
        if not _CACHES & self._model_takes & self._decoder_takes:
            raise UnsupportedModel(
                f"{model.config.model_type} cannot be split: it keeps no cache between steps"
            )

    def hidden(self, caches: LayerCaches, position: int, inputs: torch.Tensor) -> None:
        """Run embedding, layers and final norm on ids [1, tokens] or embeddings [1, tokens, width]."""
        self._decoder(**self._arguments(self._decoder_takes, caches, position, inputs, 0))

    def logits(self, caches: LayerCaches, position: int, inputs: torch.Tensor, rows: int) -> torch.Tensor:
        """The same and the head: logits [1, rows, vocabulary] of the last `rows` rows (0: of all)."""
        out = self._model(**self._arguments(self._model_takes, caches, position, inputs, rows))
        logits: torch.Tensor = out.logits
        return logits[:, -rows:]

    @staticmethod
    def _arguments(
        takes: frozenset[str], caches: LayerCaches, position: int, inputs: torch.Tensor, rows: int
    ) -> dict[str, Any]:
        tokens = inputs.shape[1]
        given: dict[str, Any] = {
            "input_ids" if inputs.dim() == 2 else "inputs_embeds": inputs,
            **dict.fromkeys(_CACHES, caches),
            "use_cache": True,
            "return_dict": True,
            "logits_to_keep": rows,
        }
        if "position_ids" in takes:
            given["position_ids"] = torch.arange(position, position + tokens, device=inputs.device)[None]
        return {name: value for name, value in given.items() if name in takes}
