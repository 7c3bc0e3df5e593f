"""One sequence, token by token: the best each time, or drawn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from protocol.errors import ConfigError
from swarm.decoding.asks import Decoding, Ending, Task
from swarm.decoding.chooser import Chooser
from swarm.decoding.sampling import Sampling


@dataclass(frozen=True, slots=True)
class Greedy:
    """Takes the best token each time."""

    name: ClassVar[str] = "greedy"
    needs_amateur: ClassVar[bool | None] = False

    @property
    def sessions(self) -> int:
        """See `Strategy`."""
        return 1

    def check(self, sampling: Sampling) -> None:
        """See `Strategy`."""
        takes_the_best(self.name, sampling)

    def decode(self, task: Task) -> Decoding:
        """See `Strategy`."""
        return token_by_token(task)


@dataclass(frozen=True, slots=True)
class Sample:
    """Draws each token from what the settings leave of the model's distribution."""

    name: ClassVar[str] = "sample"
    needs_amateur: ClassVar[bool | None] = False

    @property
    def sessions(self) -> int:
        """See `Strategy`."""
        return 1

    def check(self, sampling: Sampling) -> None:
        """See `Strategy`."""
        draws(self.name, sampling)

    def decode(self, task: Task) -> Decoding:
        """See `Strategy`."""
        return token_by_token(task)


def token_by_token(task: Task) -> Decoding:
    """The whole of it, by the task's settings."""
    chooser = Chooser(task)
    tokens, done = list(task.prompt), task.begin
    for _ in range(task.max_new_tokens):
        token = yield from chooser.choose(tuple(tokens[done:]), done, tokens)
        done = len(tokens)
        tokens.append(token.id)
        yield token
        if token.id in task.eos:
            return Ending("eos")
    return Ending("length")


def takes_the_best(name: str, sampling: Sampling) -> None:
    """Raises: ConfigError, where settings say how to draw."""
    if sampling.drawing:
        raise ConfigError(
            f"{name} draws nothing: leave out {', '.join(sampling.drawing)}, or take another strategy"
        )


def draws(name: str, sampling: Sampling) -> None:
    """Raises: ConfigError, where nothing would be drawn."""
    if sampling.greedy:
        raise ConfigError(f"{name} draws tokens: give a temperature above 0, as 1")
