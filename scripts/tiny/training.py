"""The two model shapes and the training loop."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from scripts.tiny.data import IGNORED, Encoder, batches
from scripts.tiny.tokens import BOS, CONTEXT, END, PAD, save_tokenizer

log = logging.getLogger("train_tiny")


@dataclass(frozen=True)
class Shape:
    """The size of a model and the peak learning rate that suits it."""

    hidden: int
    intermediate: int
    layers: int
    tied: bool
    rate: float
    heads: int = 4
    key_value_heads: int = 2


SHAPES = {
    "tiny": Shape(hidden=128, intermediate=352, layers=8, tied=False, rate=2e-3),
    "tiny-draft": Shape(hidden=64, intermediate=160, layers=4, tied=True, rate=4e-3),
}


@dataclass(frozen=True)
class Plan:
    """How long to train: for a number of steps, or, when ``minutes`` is given, by the clock."""

    seed: int
    steps: int
    minutes: float | None
    tokens_per_step: int = 2048
    warm_up: float = 0.03
    last_rate: float = 0.02

    def progress(self, step: int, seconds: float) -> float:
        """The part of the training that is done, from 0 to 1."""
        return min(1.0, step / self.steps if self.minutes is None else seconds / (60 * self.minutes))

    def rate(self, progress: float) -> float:
        """The share of the peak learning rate to use: a linear warm-up, then half a cosine."""
        if progress < self.warm_up:
            return max(progress / self.warm_up, 0.01)
        angle = math.pi * (progress - self.warm_up) / (1 - self.warm_up)
        return self.last_rate + (1 - self.last_rate) * (1 + math.cos(angle)) / 2


@dataclass(frozen=True)
class Trained:
    """What a training run amounted to."""

    steps: int
    tokens: int
    minutes: float
    loss: float


def new_model(shape: Shape, tokenizer: Tokenizer, seed: int) -> LlamaForCausalLM:
    """An untrained model; the same seed gives the same weights."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_value_heads,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=shape.tied,
        initializer_range=0.02 if shape.tied else 0.04,
        bos_token_id=tokenizer.token_to_id(BOS),
        eos_token_id=tokenizer.token_to_id(END),
        pad_token_id=tokenizer.token_to_id(PAD),
        use_cache=True,
    )
    return LlamaForCausalLM(config)


def save(model: LlamaForCausalLM, tokenizer: Tokenizer, folder: Path) -> None:
    """Writes the whole model folder: configuration, weights and tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    config = model.config
    model.generation_config = GenerationConfig(
        bos_token_id=config.bos_token_id,
        eos_token_id=config.eos_token_id,
        pad_token_id=config.pad_token_id,
        do_sample=False,
        max_new_tokens=192,
    )
    model.save_pretrained(folder)
    save_tokenizer(tokenizer, folder)


def train(
    model: LlamaForCausalLM,
    tokenizer: Tokenizer,
    plan: Plan,
    peak_rate: float,
    checkpoint: Callable[[Trained], object],
    checkpoint_minutes: float,
) -> Trained:
    """Trains the model in place by AdamW; calls ``checkpoint`` about every ``checkpoint_minutes``."""
    matrices = [parameter for parameter in model.parameters() if parameter.dim() > 1]
    gains = [parameter for parameter in model.parameters() if parameter.dim() <= 1]
    groups = [{"params": matrices, "weight_decay": 0.05}, {"params": gains, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=peak_rate, betas=(0.9, 0.98))
    began = saved = time.monotonic()
    step, tokens, average = 0, 0, 0.0
    for batch in batches(Encoder(tokenizer), plan.seed, plan.tokens_per_step):
        progress = plan.progress(step, time.monotonic() - began)
        if progress >= 1:
            break
        for group in optimizer.param_groups:
            group["lr"] = peak_rate * plan.rate(progress)
        model.train()
        hidden = model.model(input_ids=batch.ids, use_cache=False).last_hidden_state
        learnt = batch.labels != IGNORED
        loss = F.cross_entropy(model.lm_head(hidden[learnt]), batch.labels[learnt])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step += 1
        tokens += batch.ids.numel()
        average += (loss.item() - average) * max(0.02, 1 / step)
        now = time.monotonic()
        if step % 50 == 0:
            speed = tokens / (now - began)
            log.info("step %d (%.0f %%) loss %.4f, %.0f tokens/s", step, 100 * progress, average, speed)
        if now - saved > 60 * checkpoint_minutes:
            checkpoint(Trained(step, tokens, (now - began) / 60, average))
            saved = time.monotonic()
    return Trained(step, tokens, (time.monotonic() - began) / 60, average)


def write_json(path: Path, content: dict[str, object]) -> None:
    """Writes indented JSON with a final newline."""
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
