"""A checkpoint on which a long prompt takes a while, and what transformers answers to it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from tests.support.models import make_model

LAYERS = 4
CONTEXT = 2048


def make_slow_model(folder: Path) -> Path:
    """A random Llama of 68 million parameters that never ends an answer by itself."""
    return make_model(
        "llama",
        folder,
        seed=5,
        layers=LAYERS,
        hidden_size=1024,
        intermediate_size=4096,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=CONTEXT,
        eos_token_id=None,
    )


def generated(folder: Path, prompt: list[int], count: int) -> list[int]:
    """The `count` tokens that transformers' generate puts after the prompt, greedily."""
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = torch.tensor([prompt])
    with torch.inference_mode():
        output = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, do_sample=False
        )
    found: list[int] = output[0, len(prompt) :].tolist()
    return found
