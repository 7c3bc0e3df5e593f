"""Transformers' own generate over made-up logits."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from transformers import (
    GenerationConfig,
    GenerationMixin,
    LogitsProcessorList,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.modeling_outputs import CausalLMOutput

from tests.swarm.decoding.reference import Model


class Oracle(PreTrainedModel, GenerationMixin):
    """A causal language model whose logits are those of a function of the tokens so far."""

    def __init__(self, model: Model, vocab_size: int) -> None:
        config: Any = PretrainedConfig()
        config.vocab_size, config.is_encoder_decoder = vocab_size, False
        super().__init__(config)
        self.anchor = torch.nn.Parameter(torch.zeros(1))
        self._model = model

    def forward(self, input_ids: torch.Tensor, **_: Any) -> CausalLMOutput:
        """Logits after each whole row."""
        rows = [self._model(tokens) for tokens in input_ids.tolist()]
        return CausalLMOutput(logits=torch.from_numpy(np.stack(rows))[:, None])


def generate(
    model: Model,
    vocab_size: int,
    prompt: list[int],
    processors: LogitsProcessorList | None = None,
    **how: Any,
) -> tuple[list[list[int]], list[float]]:
    """What transformers puts after the prompt, best first, up to the first of `eos_token_id`; and the scores."""
    ends = how.get("eos_token_id") or []
    config = GenerationConfig(
        use_cache=False, return_dict_in_generate=True, output_scores=True, pad_token_id=0, **how
    )
    oracle: Any = Oracle(model, vocab_size)
    found = oracle.generate(
        torch.tensor([prompt]), generation_config=config, logits_processor=processors or LogitsProcessorList()
    )
    texts = []
    for row in found.sequences[:, len(prompt) :].tolist():
        end = next((index for index, token in enumerate(row) if token in ends), len(row) - 1)
        texts.append(row[: end + 1])
    return texts, found.sequences_scores.tolist()
