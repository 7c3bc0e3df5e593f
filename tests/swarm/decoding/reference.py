"""A head over made-up logits that answers what is asked, and transformers' processors to compare with."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import LogitsProcessorList
from transformers.generation.logits_process import (
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from protocol.candidates import Candidates, Want
from swarm.decoding import Ask, Emit, Sampling

Logits = NDArray[np.float32]
Model = Callable[[Sequence[int]], Logits]


def answer(logits: Logits, want: Want) -> Candidates:
    """What the LM head returns for one row of logits."""
    order = np.lexsort((np.arange(len(logits)), -logits))
    best = order[: want.top or len(logits)]
    scaled = logits.astype(np.float64) / want.temperature
    lse = scaled.max() + np.log(np.exp(scaled - scaled.max()).sum())
    asked = logits[np.asarray(want.ids, np.int64)]
    return Candidates(
        best[None].astype(np.int32), logits[best][None], np.asarray([lse], np.float32), asked[None]
    )


def make_model(seed: int, vocab_size: int, spread: float = 3.0, coarse: bool = False) -> Model:
    """A function from the tokens so far to logits; `coarse` ones have many ties, as bf16 has."""

    def logits_of(tokens: Sequence[int]) -> Logits:
        rng = np.random.default_rng([seed, *tokens[-3:]])
        logits = rng.normal(0, spread, vocab_size)
        return (np.round(logits * 4) / 4 if coarse else logits).astype(np.float32)

    return logits_of


def run(
    generator: Generator[Ask | Emit, Candidates | None, str], model: Model, prompt: Sequence[int]
) -> tuple[list[Emit], str, list[Ask]]:
    """Drive a strategy over a model as a swarm would: caches hold what was asked, cut at each position."""
    emitted: list[Emit] = []
    asked: list[Ask] = []
    cache = list(prompt)
    reply: Candidates | None = None
    while True:
        try:
            said = generator.send(reply)
        except StopIteration as stop:
            return emitted, stop.value, asked
        if isinstance(said, Emit):
            emitted.append(said)
            reply = None
            continue
        assert 0 <= said.position <= len(cache)
        assert said.tokens
        cache[said.position :] = said.tokens
        asked.append(said)
        reply = answer(model(cache), said.want)


def processed(logits: Logits, tokens: Sequence[int], sampling: Sampling) -> Logits:
    """The scores that transformers would sample from (-inf: not left)."""
    steps = LogitsProcessorList()
    if sampling.repetition_penalty != 1:
        steps.append(RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty))
    if not sampling.greedy:
        steps.append(TemperatureLogitsWarper(sampling.temperature))
        if sampling.top_k:
            steps.append(TopKLogitsWarper(sampling.top_k))
        if sampling.top_p < 1:
            steps.append(TopPLogitsWarper(sampling.top_p))
    scores: Logits = steps(torch.LongTensor([list(tokens)]), torch.from_numpy(logits)[None])[0].numpy()
    return scores


def probabilities(scores: Logits) -> NDArray[np.float64]:
    """The softmax."""
    exact = np.exp(scores.astype(np.float64) - float(scores.max()))
    shares: NDArray[np.float64] = exact / exact.sum()
    return shares
