"""Calls of a model's own forward with exactly the arguments it knows."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import nn

from node.engine.cache import LayerCaches
from node.engine.pooled import PoolCaches
from node.engine.rows import RowCaches
from protocol.errors import UnsupportedModel

if TYPE_CHECKING:
    from transformers import PreTrainedModel


# The second is what families without attention call their state.
_CACHES: Final = {"past_key_values", "cache_params"}

Caches = LayerCaches | RowCaches | PoolCaches


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

    @property
    def takes_positions(self) -> bool:
        """Whether the family is told where each row stands, instead of counting what its cache holds."""
        return "position_ids" in self._model_takes & self._decoder_takes

    def hidden(self, caches: Caches, inputs: torch.Tensor) -> None:
        """Run embedding, layers and final norm on ids [1, tokens] or embeddings [1, tokens, width].

        With `RowCaches` the inputs are one row of each session: [sessions, 1] or [sessions, 1, width].
        """
        self._decoder(**self._arguments(self._decoder_takes, caches, inputs, 0))

    def logits(self, caches: Caches, inputs: torch.Tensor, rows: int) -> torch.Tensor:
        """The same and the head: logits [1 or sessions, rows, vocabulary] of the last `rows` rows (0: of all)."""
        out = self._model(**self._arguments(self._model_takes, caches, inputs, rows))
        logits: torch.Tensor = out.logits
        return logits[:, -rows:]

    def logits_and_states(
        self, caches: Caches, inputs: torch.Tensor, rows: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The same, and the states after the last norm [1 or sessions, rows, width]."""
        states: list[torch.Tensor] = []
        hook = self._decoder.register_forward_hook(lambda module, given, out: states.append(out[0]))
        try:
            logits = self.logits(caches, inputs, rows)
        finally:
            hook.remove()
        return logits, states[0][:, -rows:]

    @staticmethod
    def _arguments(takes: frozenset[str], caches: Caches, inputs: torch.Tensor, rows: int) -> dict[str, Any]:
        given: dict[str, Any] = {
            "input_ids" if inputs.dim() == 2 else "inputs_embeds": inputs,
            **dict.fromkeys(_CACHES, caches),
            "use_cache": True,
            "return_dict": True,
            "logits_to_keep": rows,
        }
        if "position_ids" in takes:
            given["position_ids"] = caches.positions(inputs.shape[1]).to(inputs.device)
        return {name: value for name, value in given.items() if name in takes}
