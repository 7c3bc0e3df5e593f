"""What a user may ask of the choice of tokens."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Final

from protocol import limits
from protocol.errors import ConfigError
from swarm.decoding.grammar import Guide

# The ids that may come next, for ever or after the tokens so far (the prompt's too).
Allowed = Collection[int] | Callable[[Sequence[int]], Collection[int]] | Guide

# Settings that only say something where tokens are drawn, and what each is when it is off.
DRAWING: Final = {"temperature": 0.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "typical_p": 1.0}


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is chosen from the logits; the words mean what they mean in transformers, and in its order.

    temperature         0 takes the best token always (greedy); else logits are divided by it
    top_k               only the k best are left; 0 leaves all
    top_p               only the best that together reach this probability are left; 1 leaves all
    min_p               only those at least so probable, times the best one's probability, are left; 0 leaves all
    typical_p           only those nearest to the expected surprise that together reach this probability; 1 leaves all
    repetition_penalty  divides (or multiplies, below zero) the logits of ids that occurred, the prompt's too
    presence_penalty    is taken from the logits of ids that occurred in the answer
    frequency_penalty   is taken from them once for each time that they did
    no_repeat_ngram     no so many tokens in a row occur twice, the prompt's too; 0 is off
    logit_bias          is added to the logits of these ids, before all else
    allowed             only these ids are left; or those that a function names, given all tokens so far
    banned              these ids are not left
    min_new_tokens      an answer does not end before it has so many
    seed                the same seed draws the same text from the same logits; None draws anew each time

    Presence and frequency are as in the OpenAI API, and come after the repetition penalty.
    Raises: ConfigError, where a value is out of range.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    min_p: float = 0.0
    typical_p: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    no_repeat_ngram: int = 0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    allowed: Allowed | None = None
    banned: Collection[int] = frozenset()
    min_new_tokens: int = 0

    def __post_init__(self) -> None:
        for name, (wrong, right) in self._ranges().items():
            if wrong:
                raise ConfigError(f"{name} {getattr(self, name)}: it is {right}")
        for token, bias in self.logit_bias.items():
            if not abs(bias) <= 1000:
                raise ConfigError(f"logit_bias {bias} of token {token}: it is from -1000 to 1000")
        if self.named == frozenset():
            raise ConfigError("allowed names no token: nothing could be answered")

    def _ranges(self) -> dict[str, tuple[bool, str]]:
        """Of each setting whether it is out of range, and what that is. NaN is in none."""
        penalty = self.repetition_penalty
        # The lower ends of the temperature keep logits / temperature and the log-sum-exp finite in fp32.
        hot = self.temperature == 0 or 0.001 <= self.temperature <= 1000
        tokens = f"a number of tokens up to {limits.VOCABULARY}"
        return {
            "temperature": (not hot, "0 (greedy) or from 0.001 to 1000"),
            "top_k": (not 0 <= self.top_k <= limits.VOCABULARY, f"0 (off) or {tokens}"),
            "top_p": (not 0 < self.top_p <= 1, "above 0 and at most 1 (off)"),
            "min_p": (not 0 <= self.min_p <= 1, "from 0 (off) to 1"),
            "typical_p": (not 0 < self.typical_p <= 1, "above 0 and at most 1 (off)"),
            "repetition_penalty": (not 0.01 <= penalty <= 100, "from 0.01 to 100, 1 is off"),
            "presence_penalty": (not abs(self.presence_penalty) <= 100, "from -100 to 100, 0 is off"),
            "frequency_penalty": (not abs(self.frequency_penalty) <= 100, "from -100 to 100, 0 is off"),
            "no_repeat_ngram": (self.no_repeat_ngram < 0, "0 (off) or a number of tokens"),
            "min_new_tokens": (self.min_new_tokens < 0, "not negative"),
            "seed": (self.seed is not None and self.seed < 0, "not negative"),
        }

    @property
    def named(self) -> Collection[int] | None:
        """The ids that `allowed` names once and for all; None, if it names none so."""
        if self.allowed is None or isinstance(self.allowed, Guide) or callable(self.allowed):
            return None
        return self.allowed or frozenset()

    @property
    def greedy(self) -> bool:
        """Whether the best token is always taken."""
        return self.temperature == 0

    @property
    def divisor(self) -> float:
        """What logits are divided by."""
        return self.temperature or 1.0

    @property
    def drawing(self) -> tuple[str, ...]:
        """The settings in use that only say something where tokens are drawn."""
        return tuple(
            f.name for f in fields(self) if f.name in DRAWING and getattr(self, f.name) != DRAWING[f.name]
        )

    def check_ids(self, vocab_size: int) -> None:
        """Raises: ConfigError, where a setting names an id that this vocabulary has not."""
        for name, ids in (
            ("logit_bias", self.logit_bias),
            ("allowed", self.named or ()),
            ("banned", self.banned),
        ):
            for token in ids:
                if not 0 <= token < vocab_size:
                    raise ConfigError(
                        f"{name} {token}: the model's vocabulary has ids from 0 to {vocab_size - 1}"
                    )
