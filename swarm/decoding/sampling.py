"""What a user may ask of the choice of tokens."""

from __future__ import annotations

import math
from dataclasses import dataclass

from protocol import limits
from protocol.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is chosen from the logits; the words mean what they mean in transformers.

    temperature         0 takes the best token always (greedy); else logits are divided by it
    top_k               only the k best are left; 0 leaves all
    top_p               only the best that together reach this probability are left; 1 leaves all
    repetition_penalty  divides (or multiplies, below zero) the logits of ids that occurred, the prompt's too
    seed                the same seed draws the same text from the same logits; None draws anew each time

    Raises: ConfigError, where a value is out of range.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        # The lower ends keep logits / temperature and the log-sum-exp finite in fp32.
        if not (self.temperature == 0 or 0.001 <= self.temperature <= 1000):
            raise ConfigError(f"temperature {self.temperature}: it is 0 (greedy) or from 0.001 to 1000")
        if not 0 <= self.top_k <= limits.VOCABULARY:
            raise ConfigError(
                f"top_k {self.top_k}: it is 0 (off) or a number of tokens up to {limits.VOCABULARY}"
            )
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p {self.top_p}: it is above 0 and at most 1 (off)")
        if not (math.isfinite(self.repetition_penalty) and 0.01 <= self.repetition_penalty <= 100):
            raise ConfigError(
                f"repetition_penalty {self.repetition_penalty}: it is from 0.01 to 100, 1 is off"
            )
        if self.seed is not None and self.seed < 0:
            raise ConfigError(f"seed {self.seed}: it is not negative")

    @property
    def greedy(self) -> bool:
        """Whether the best token is always taken."""
        return self.temperature == 0

    @property
    def divisor(self) -> float:
        """What logits are divided by."""
        return self.temperature or 1.0
