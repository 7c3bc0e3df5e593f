"""A head over made-up logits that answers what is asked, and transformers' processors to compare with."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import LogitsProcessorList
from transformers.generation.logits_process import (
    LogitsProcessor,
    MinNewTokensLengthLogitsProcessor,
    MinPLogitsWarper,
    NoRepeatNGramLogitsProcessor,
    PrefixConstrainedLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    SuppressTokensLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

from protocol.candidates import Candidates, Want, join_candidates
from swarm.decoding import (
    AMATEUR,
    DRAFT,
    Ask,
    Begin,
    Decoding,
    Ending,
    Landed,
    Next,
    Sampling,
    Together,
    Token,
)
from swarm.decoding.grammar import Guide

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


def answer_rows(model: Model, tokens: Sequence[int], position: int, want: Want) -> Candidates:
    """What it returns for a step of the tokens from `position` on: the last row, or each."""
    if not want.every:
        return answer(model(tokens), want)
    joined = join_candidates(
        [answer(model(tokens[:stop]), want) for stop in range(position + 1, len(tokens) + 1)]
    )
    assert joined is not None
    return joined


def make_model(seed: int, vocab_size: int, spread: float = 3.0, coarse: bool = False) -> Model:
    """A function from the tokens so far to logits; `coarse` ones have many ties, as bf16 has."""

    def logits_of(tokens: Sequence[int]) -> Logits:
        rng = np.random.default_rng([seed, *tokens[-3:]])
        logits = rng.normal(0, spread, vocab_size)
        return (np.round(logits * 4) / 4 if coarse else logits).astype(np.float32)

    return logits_of


@dataclass
class Run:
    """A strategy that has run over a model as over a swarm: caches hold what was asked, cut at each position."""

    tokens: list[Token] = field(default_factory=list)
    asked: list[Ask] = field(default_factory=list)
    together: list[Together] = field(default_factory=list)
    steps_before: list[int] = field(default_factory=list)  # how many of those there were when each token came
    most_begun: int = 0  # steps under way at once
    ending: Ending = field(default_factory=lambda: Ending(""))

    @property
    def ids(self) -> list[int]:
        """What it gave."""
        return [token.id for token in self.tokens]


def run(
    strategy: Decoding,
    model: Model,
    prompt: Sequence[int],
    beside: Model | None = None,
    trip_s: float = 1.0,
    states: Model | None = None,
) -> Run:
    """Drive it to its end.

    beside: the model that is the amateur, or drafts; what is begun takes `trip_s`; `states` gives the state of which
    a row of logits is made, where that is asked for.
    """
    done = Run()
    branches: dict[int, list[int]] = {0: list(prompt), AMATEUR: [], DRAFT: []}
    begun: deque[Candidates] = deque()

    def ask(said: Ask) -> Candidates:
        cache = branches[said.branch]
        assert 0 <= said.position <= len(cache)
        assert said.tokens
        cache[said.position :] = said.tokens
        done.asked.append(said)
        asked = model if said.branch not in (AMATEUR, DRAFT) or beside is None else beside
        found = answer_rows(asked, cache, said.position, said.want)
        if not said.want.states:
            return found
        assert states is not None
        stops = range(said.position + 1, len(cache) + 1) if said.want.every else [len(cache)]
        return replace(found, states=np.stack([states(cache[:stop]) for stop in stops]))

    told: Any = None
    while True:
        try:
            said = strategy.send(told)
        except StopIteration as stop:
            done.ending = stop.value
            return done
        told = None
        if isinstance(said, Token):
            done.tokens.append(said)
            done.steps_before.append(len(done.together))
        elif isinstance(said, Ask):
            begun = begun if said.branch else deque()
            told = ask(said)
        elif isinstance(said, Begin):
            if said.ask.position < len(branches[0]):
                begun.clear()
            begun.append(ask(said.ask))
            done.most_begun = max(done.most_begun, len(begun))
        elif isinstance(said, Next):
            told = Landed(begun.popleft(), trip_s)
        else:
            done.together.append(said)
            for each in said.asks:
                if each.parent is not None:
                    assert each.branch not in branches
                    assert each.position <= len(branches[each.parent])
                    branches[each.branch] = branches[each.parent][: each.position]
            assert len({each.branch for each in said.asks}) == len(said.asks)
            told = [ask(each) for each in said.asks]
            for branch in said.dropped:
                assert branch not in [each.branch for each in said.asks]
                if branch:
                    del branches[branch]


class Occurrence(LogitsProcessor):
    """Presence and frequency penalties, which transformers has not; by their definition in the OpenAI API."""

    def __init__(self, presence: float, frequency: float, prompt: int) -> None:
        self.presence = presence
        self.frequency = frequency
        self.prompt = prompt

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """mu[j] - c[j] * frequency - (c[j] > 0) * presence."""
        counts = torch.zeros_like(scores)
        for row, tokens in zip(counts, input_ids[:, self.prompt :], strict=True):
            row += torch.bincount(tokens, minlength=scores.shape[1])
        return scores - (counts * self.frequency + (counts > 0) * self.presence)


def processors(sampling: Sampling, prompt: int, eos: Collection[int] = ()) -> LogitsProcessorList:
    """Transformers' own, in its order, as its generate puts them together."""
    steps = LogitsProcessorList()
    if sampling.logit_bias:
        steps.append(
            SequenceBiasLogitsProcessor([[[token], bias] for token, bias in sampling.logit_bias.items()])
        )
    if sampling.repetition_penalty != 1:
        steps.append(RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty))
    if sampling.presence_penalty or sampling.frequency_penalty:
        steps.append(Occurrence(sampling.presence_penalty, sampling.frequency_penalty, prompt))
    if sampling.no_repeat_ngram:
        steps.append(NoRepeatNGramLogitsProcessor(sampling.no_repeat_ngram))
    if sampling.min_new_tokens and eos:
        steps.append(
            MinNewTokensLengthLogitsProcessor(prompt, sampling.min_new_tokens, sorted(eos), device="cpu")
        )
    if sampling.allowed is not None:
        allowed = sampling.allowed
        assert not isinstance(allowed, Guide)
        steps.append(
            PrefixConstrainedLogitsProcessor(
                lambda _, tokens: sorted(allowed(tokens.tolist()) if callable(allowed) else allowed), 1
            )
        )
    if sampling.banned:
        steps.append(SuppressTokensLogitsProcessor(sorted(sampling.banned)))
    if not sampling.greedy:
        steps.append(TemperatureLogitsWarper(sampling.temperature))
        if sampling.top_k:
            steps.append(TopKLogitsWarper(sampling.top_k))
        if sampling.top_p < 1:
            steps.append(TopPLogitsWarper(sampling.top_p))
        if sampling.min_p:
            steps.append(MinPLogitsWarper(sampling.min_p))
        if sampling.typical_p < 1:
            steps.append(TypicalLogitsWarper(sampling.typical_p))
    return steps


def processed(
    logits: Logits, tokens: Sequence[int], sampling: Sampling, prompt: int = 0, eos: Collection[int] = ()
) -> Logits:
    """The scores that transformers would choose from (-inf: not left); the first `prompt` tokens are the prompt's."""
    steps = processors(sampling, prompt, eos)
    scores: Logits = steps(torch.LongTensor([list(tokens)]), torch.from_numpy(logits)[None])[0].numpy()
    return scores


def probabilities(scores: Logits) -> NDArray[np.float64]:
    """The softmax."""
    exact = np.exp(scores.astype(np.float64) - float(scores.max()))
    shares: NDArray[np.float64] = exact / exact.sum()
    return shares
