"""Several answers to one prompt, drawn side by side: the likeliest is given, the others are told."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Final

from protocol.candidates import Candidates
from protocol.errors import ConfigError
from swarm.decoding.asks import Ask, Continuation, Decoding, Ending, OutOfTime, Task, Together, Token
from swarm.decoding.chooser import Chooser, Place
from swarm.decoding.sampling import Sampling
from swarm.decoding.single import draws

# Each is a session at every hop, of the 64 that a peer may have there.
ANSWERS: Final = 32


@dataclass(frozen=True, slots=True)
class BestOf:
    """Draws `answers` answers; the best has the highest mean log-probability of its tokens.

    The first is what `Sample` draws with the same seed. For a vote (self-consistency) look at all of them.
    """

    name: ClassVar[str] = "best_of"
    needs_amateur: ClassVar[bool | None] = False

    answers: int = 4

    def __post_init__(self) -> None:
        if not 1 <= self.answers <= ANSWERS:
            raise ConfigError(f"answers {self.answers}: it is from 1 to {ANSWERS}")

    @property
    def sessions(self) -> int:
        """See `Strategy`."""
        return self.answers

    def check(self, sampling: Sampling) -> None:
        """See `Strategy`."""
        draws(self.name, sampling)

    def decode(self, task: Task) -> Decoding:
        """See `Strategy`."""
        return _side_by_side(task, self.answers)


class _Line:
    """One of the answers."""

    def __init__(self, task: Task, number: int) -> None:
        self.branch = number
        self.tokens: list[Token] = []
        self.reason = ""
        self._task = task
        self._chooser = Chooser(task, number)
        self._place: Place | None = None  # where the next token is to be chosen

    def ask(self, parent: int | None = None) -> Ask:
        """What settles its next token: what is likely to, and once more at the same place everything."""
        ids = [*self._task.prompt, *(token.id for token in self.tokens)]
        if self._place is None:
            self._place = self._chooser.place(ids)
            begin = len(ids) - 1 if self.tokens else self._task.begin
        else:
            self._place, begin = self._chooser.again(self._place), len(ids) - 1
        return Ask(tuple(ids[begin:]), begin, self._place.want, self.branch, parent)

    def take(self, found: Candidates) -> bool:
        """Whether what came of it settles the token."""
        assert self._place is not None
        token = self._chooser.pick(self._place, found)
        if token is None:
            return False
        self.tokens.append(token)
        self._place = None
        if token.id in self._task.eos:
            self.reason = "eos"
        elif len(self.tokens) == self._task.max_new_tokens:
            self.reason = "length"
        return True

    def continuation(self) -> Continuation:
        """It, as it stands."""
        mean = sum(token.logprob for token in self.tokens) / len(self.tokens)
        return Continuation(tuple(self.tokens), self.reason or "time", mean)


def _side_by_side(task: Task, count: int) -> Decoding:
    lines = [_Line(task, number) for number in range(count)]
    try:
        yield from _begin(lines)
        parent: int | None = 0
        ended: tuple[int, ...] = ()
        while going := [line for line in lines if not line.reason]:
            left = going
            while left:
                asks = tuple(line.ask(parent if line.branch and left is going else None) for line in left)
                found = yield Together(asks, ended)
                left, ended = [line for line, row in zip(left, found, strict=True) if not line.take(row)], ()
            parent, ended = None, tuple(line.branch for line in going if line.reason)
    except OutOfTime:
        if not lines[0].tokens:
            raise
    first, *others = sorted(
        (line.continuation() for line in lines if line.tokens), key=lambda each: -each.score
    )
    yield from first.tokens
    return Ending(first.reason, first.score, tuple(others))


def _begin(lines: Sequence[_Line]) -> Generator[Ask, Any, None]:
    """The first token of each, out of the same row: branch 0 has run the prompt then."""
    asks = [line.ask() for line in lines]
    found = yield asks[0]
    if left := [line for line in lines if not line.take(found)]:
        again = [replace(line.ask(), branch=0) for line in left]
        found = yield again[0]
        for line in left:
            line.take(found)
