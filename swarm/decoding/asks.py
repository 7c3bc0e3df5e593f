"""What a strategy says and is told. It is a generator: each thing it yields is answered as the thing's class says.

It does not know who answers: a swarm, a model on this machine, or a list in a test. A *branch* is a sequence with
caches of its own at whoever answers. Branch 0 is there from the beginning; any other begins as a part of one that is.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final, Protocol

from protocol.candidates import Candidates, Want
from protocol.errors import ConfigError
from swarm.decoding.sampling import Sampling

# Ids and their log-probabilities, best first.
Best = tuple[tuple[int, float], ...]
# The branch of another model that is asked beside: it is there from the beginning where a strategy needs it.
AMATEUR: Final = -1
# The same for the model that drafts.
DRAFT: Final = -2


@dataclass(frozen=True, slots=True)
class Ask:
    """Run `tokens` at `position` of a branch; answered by the candidates after the last of them (or after each).

    The position may be before the end of what was asked already: what stands there is forgotten, as a draft that was
    wrong, or asked again with another want.
    parent: the branch is new, and begins with the first `position` tokens of this one, which nobody computes again
    """

    tokens: tuple[int, ...]
    position: int
    want: Want
    branch: int = 0
    parent: int | None = None


@dataclass(frozen=True, slots=True)
class Together:
    """Asks of different branches, run at once; answered by a list of what each gives, in order.

    All parents are as they were before. Branches in `dropped` are not used again.
    """

    asks: tuple[Ask, ...]
    dropped: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Begin:
    """Send this ask of branch 0 and go on while it is under way; answered by None.

    Where it stands before the end of what was asked, all that is under way is forgotten, as by an `Ask` of branch 0.
    """

    ask: Ask


@dataclass(frozen=True, slots=True)
class Next:
    """Wait for what was begun first; answered by its `Landed`."""


@dataclass(frozen=True, slots=True)
class Landed:
    """What came of an ask that was begun, and how long it was under way."""

    found: Candidates
    seconds: float


@dataclass(frozen=True, slots=True)
class Token:
    """The next token of the answer; answered by None.

    logprob  of logits / temperature, before any processor
    best     the best ids by the same measure, as many as were asked for
    """

    id: int
    logprob: float
    best: Best = ()


@dataclass(frozen=True, slots=True)
class Continuation:
    """One of several answers that a strategy found; `score` is what it went by, and higher is better."""

    tokens: tuple[Token, ...]
    reason: str
    score: float


@dataclass(frozen=True, slots=True)
class Ending:
    """Why the answer ended, "eos" or "length"; and what else was found, best first."""

    reason: str
    score: float | None = None
    others: tuple[Continuation, ...] = ()


class OutOfTime(Exception):
    """Thrown into a strategy in place of an answer: it may still yield tokens and end, but ask nothing more."""


Said = Ask | Together | Begin | Next | Token
Told = Candidates | list[Candidates] | Landed | None
Decoding = Generator[Said, Any, Ending]  # is sent what Told says


@dataclass(frozen=True, slots=True)
class Task:
    """What is to be continued, and how far.

    cached        tokens of the prompt that branch 0 holds already
    eos           ids that end an answer; they are part of it
    top_logprobs  how many of the best ids each token tells of
    hidden_size   numbers of a state, for strategies that ask for states
    amateur_vocab the vocabulary of the model on the branch AMATEUR, if there is one
    draft_vocab   the same of the model on the branch DRAFT
    goes_back     whether branch 0 goes back at the cost of the rows asked alone; else all before them is run again
    clock         seconds, for strategies that go by what answers cost

    Raises: ConfigError, for a prompt that is empty or not of this vocabulary, and for settings that name other ids.
    """

    prompt: Sequence[int]
    vocab_size: int
    max_new_tokens: int
    sampling: Sampling = field(default_factory=Sampling)
    eos: frozenset[int] = frozenset()
    cached: int = 0
    top_logprobs: int = 0
    amateur_vocab: int | None = None
    draft_vocab: int | None = None
    goes_back: Callable[[], bool] = lambda: True
    hidden_size: int = 0
    clock: Callable[[], float] = time.perf_counter

    def __post_init__(self) -> None:
        if not self.prompt:
            raise ConfigError("the prompt is empty: there is nothing to continue")
        if not 0 <= min(self.prompt) <= max(self.prompt) < self.vocab_size:
            raise ConfigError(f"the prompt has a token outside the model's vocabulary of {self.vocab_size}")
        self.sampling.check_ids(self.vocab_size)

    @property
    def begin(self) -> int:
        """The position of the first ask: after what is cached, or at the last token where all is."""
        return min(self.cached, len(self.prompt) - 1)


class Strategy(Protocol):
    """A way to decode: a frozen dataclass of its own parameters. `swarm.decoding.table` names all there are."""

    name: ClassVar[str]
    needs_amateur: ClassVar[bool | None]  # whether the branch AMATEUR is used; None: if it is there

    @property
    def sessions(self) -> int:
        """The most branches of the model that it has at once, each a session at every hop."""

    def check(self, sampling: Sampling) -> None:
        """Raises: ConfigError, where these settings do not go with it."""

    def decode(self, task: Task) -> Decoding:
        """Continue the task's prompt, at most `max_new_tokens`. The token that ends the answer is given too.

        Whatever is drawn depends on seed and logits alone: not on the route, nor on how many candidates came.
        Raises: ConfigError, where processors leave no token.
        """
