"""What is asked of an answer: how its tokens are chosen, and when it ends."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, TypedDict

from protocol.errors import ConfigError
from swarm.branches import Model
from swarm.decoding import AUTO, Sampling, Speculative, Strategy, choose_strategy
from swarm.decoding.grammar import Grammar

# As in the OpenAI API; each costs a few bytes of every token's answer.
TOP_LOGPROBS: Final = 20

# Given the text and the ids so far, whether that is enough.
Until = Callable[[str, Sequence[int]], bool]


class Asking(TypedDict, total=False):
    """The fields of a `Request`, as arguments of what makes one."""

    max_new_tokens: int
    sampling: Sampling | None
    strategy: Strategy | str
    stop: Sequence[str]
    eos: Collection[int] | None
    max_seconds: float | None
    until: Until | None
    top_logprobs: int
    amateur: Model | None
    draft: Model | None
    grammar: Grammar | None
    marks: Mapping[int, str]


@dataclass(frozen=True, slots=True)
class Request:
    """How to answer.

    max_new_tokens  the most tokens
    sampling        how each is chosen; None: always the best
    strategy        the way to decode, or its name: "auto" is greedy or drawn, as the temperature says
    stop            the answer ends before the first of these texts
    eos             ids that end it; None: those that the model names
    max_seconds     how long it may take, from when it is first awaited; a step that is out then is left
    until           is asked after every token whether the answer is to end
    top_logprobs    of how many of the best ids each token tells the log-probability; its own is always told
    amateur         the other model of contrastive decoding: a client of another one, or one on this machine
    draft           a small model of the same tokenizer that drafts, likewise; "auto" and "speculative" use it
    grammar         what the text of the answer has to be; where its length cuts it, it begins such a text
    marks           special tokens whose text is given too, as those around calls of tools, by their ids

    Raises: ConfigError, where a value is out of range or two do not go together.
    """

    max_new_tokens: int = 64
    sampling: Sampling | None = None
    strategy: Strategy | str = AUTO
    stop: Sequence[str] = ()
    eos: Collection[int] | None = None
    max_seconds: float | None = None
    until: Until | None = field(default=None, compare=False)
    top_logprobs: int = 0
    amateur: Model | None = field(default=None, compare=False)
    draft: Model | None = field(default=None, compare=False)
    grammar: Grammar | None = None
    marks: Mapping[int, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ConfigError(f"max_new_tokens {self.max_new_tokens}: it is at least 1")
        if isinstance(self.stop, str) or not all(self.stop):
            raise ConfigError("stop: it is a list of texts, none of them empty")
        if self.max_seconds is not None and not self.max_seconds > 0:
            raise ConfigError(f"max_seconds {self.max_seconds}: it is above 0")
        if not 0 <= self.top_logprobs <= TOP_LOGPROBS:
            raise ConfigError(f"top_logprobs {self.top_logprobs}: it is from 0 to {TOP_LOGPROBS}")
        if self.grammar is not None and self.settings.allowed is not None:
            raise ConfigError("grammar and allowed: give one of them")
        strategy = self.chosen_strategy()
        if self.draft is not None and not isinstance(strategy, Speculative):
            raise ConfigError(f"{strategy.name} drafts nothing: leave out the draft, or the strategy")

    @property
    def settings(self) -> Sampling:
        """How each token is chosen."""
        return self.sampling or Sampling()

    def chosen_strategy(self) -> Strategy:
        """The way to decode. Raises: ConfigError, where there is none of that name, or these settings deny it."""
        return choose_strategy(self.strategy, self.settings)
