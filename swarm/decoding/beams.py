"""Beam search, as transformers does it: several sequences at once, of which the likeliest go on.

They are branches that share what they have in common, and none is ever computed again. A token is given out as soon
as everything that can still become the answer has it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import count, islice, takewhile
from typing import ClassVar, Final, Literal

from protocol.candidates import Candidates
from protocol.errors import ConfigError
from swarm.decoding.asks import Ask, Continuation, Decoding, Ending, OutOfTime, Task, Together, Token
from swarm.decoding.edits import Edits, edits_of
from swarm.decoding.row import best_of_row, read_row, want_row
from swarm.decoding.sampling import Sampling
from swarm.decoding.single import takes_the_best

# Each is a session at every hop, of the 64 that a peer may have there.
BEAMS: Final = 32

EarlyStopping = Literal[False, True, "never"]


@dataclass(frozen=True, slots=True)
class BeamSearch:
    """Keeps the `beams` likeliest sequences, and answers with the best that ended.

    length_penalty  a sequence's score is its log-probability over its length to this power
    early_stopping  True: as soon as `beams` have ended; False: when those that go on look no better; "never": when
                    they can be no better
    returned        how many sequences are told in the end
    """

    name: ClassVar[str] = "beam_search"
    needs_amateur: ClassVar[bool | None] = False

    beams: int = 4
    length_penalty: float = 1.0
    early_stopping: EarlyStopping = False
    returned: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.beams <= BEAMS:
            raise ConfigError(f"beams {self.beams}: it is from 1 to {BEAMS}")
        if not 1 <= self.returned <= self.beams:
            raise ConfigError(f"returned {self.returned}: it is from 1 to the number of beams, {self.beams}")
        if not abs(self.length_penalty) <= 100:
            raise ConfigError(f"length_penalty {self.length_penalty}: it is from -100 to 100")
        if self.early_stopping not in (False, True, "never"):
            raise ConfigError(f"early_stopping {self.early_stopping}: it is true, false or never")

    @property
    def sessions(self) -> int:
        """See `Strategy`."""
        return 2 * self.beams  # those that go on begin before those they came from end

    def check(self, sampling: Sampling) -> None:
        """See `Strategy`."""
        takes_the_best(self.name, sampling)

    def decode(self, task: Task) -> Decoding:
        """See `Strategy`."""
        return _search(task, self)


@dataclass(frozen=True, slots=True)
class _Beam:
    """A sequence that goes on: its tokens after the prompt, the sum of their scores, and the branch that holds it."""

    tokens: tuple[Token, ...]
    score: float
    branch: int
    parent: int | None = None  # where the branch is still to be made


@dataclass(slots=True)
class _Pool:
    """The best sequences that ended, best first."""

    how: BeamSearch
    most: int  # tokens that an answer may have
    ended: list[Continuation] = field(default_factory=list)
    open: bool = True  # those that go on may still be better

    @property
    def full(self) -> bool:
        return len(self.ended) == self.how.beams

    def take(self, beams: Sequence[_Beam], reasons: Sequence[str]) -> None:
        """Sequences of one length, in falling order of score: those with a reason ended, if they still count."""
        if not self.open or (self.full and self.how.early_stopping is True):
            return
        for beam, reason in zip(beams, reasons, strict=True):
            if reason:
                score = beam.score / len(beam.tokens) ** self.how.length_penalty
                self.ended.append(Continuation(beam.tokens, reason, score))
        self.ended = sorted(self.ended, key=lambda each: -each.score)[: self.how.beams]

    def halt(self, going: Sequence[_Beam]) -> None:
        """There is no time left: what goes on counts as it stands."""
        self.take(going, ["time" if beam.tokens else "" for beam in going])
        self.open = False

    def settle(self, going: Sequence[_Beam]) -> None:
        """After all of one length were taken: whether those that go on may still be better."""
        if not going or (self.full and self.how.early_stopping is True):
            self.open = False
        elif self.full:
            penalty = self.how.length_penalty
            longest = self.how.early_stopping == "never" and penalty > 0
            length = self.most if longest else len(going[0].tokens)
            self.open = going[0].score / length**penalty > self.ended[-1].score


def _search(task: Task, how: BeamSearch) -> Decoding:
    pool, names = _Pool(how, task.max_new_tokens), count(1)
    going, given = [_Beam((), 0.0, 0)], 0
    idle: tuple[int, ...] = ()
    try:
        while pool.open:
            before = going
            steps = [_Step.of(task, how, beam) for beam in before]
            found = yield Together(tuple(step.ask for step in steps), idle)
            reached = [beam for step, row in zip(steps, found, strict=True) for beam in step.reach(task, row)]
            reached = sorted(reached, key=lambda beam: -beam.score)[: _kept(task, how)]
            pool.take(reached[: how.beams], [_ended(task, beam) for beam in reached[: how.beams]])
            going = _seated([beam for beam in reached if not _ended(task, beam)][: how.beams], names)
            idle = tuple({beam.branch for beam in before} - {beam.branch for beam in going})
            pool.settle(going)
            if pool.open:
                common = _common([*(beam.tokens for beam in going), *(each.tokens for each in pool.ended)])
                yield from going[0].tokens[given:common]
                given = max(given, common)
    except OutOfTime:
        pool.halt(going)
        if not pool.ended:
            raise
    first, *others = pool.ended[: how.returned]
    yield from first.tokens[given:]
    return Ending(first.reason, first.score, tuple(others))


@dataclass(frozen=True, slots=True, eq=False)
class _Step:
    """One beam's part of a step."""

    beam: _Beam
    edits: Edits
    ask: Ask
    kept: int

    @classmethod
    def of(cls, task: Task, how: BeamSearch, beam: _Beam) -> _Step:
        tokens = [*task.prompt, *(token.id for token in beam.tokens)]
        edits = edits_of(task.sampling, tokens, len(task.prompt), task.eos)
        kept = _kept(task, how)
        want = want_row(edits, max(kept, task.top_logprobs), 1.0, task.vocab_size)
        position = len(tokens) - 1 if beam.tokens else task.begin
        return cls(beam, edits, Ask(tuple(tokens[position:]), position, want, beam.branch, beam.parent), kept)

    def reach(self, task: Task, found: Candidates) -> list[_Beam]:
        """The best sequences that are one token longer, in falling order of score; they are on the beam's branch."""
        row = read_row(found, self.ask.want, self.edits, task.vocab_size, normalised=True)
        best = best_of_row(found, self.ask.want, task.top_logprobs)
        entries = zip(row.ids.tolist(), row.logprobs.tolist(), row.scores.tolist(), strict=True)
        return [
            _Beam((*self.beam.tokens, Token(token, logprob, best)), self.beam.score + score, self.beam.branch)
            for token, logprob, score in islice(entries, self.kept)
            if score > -math.inf
        ]


def _kept(task: Task, how: BeamSearch) -> int:
    """Continuations looked at: enough that `beams` go on, though each of them could end by each of the ends."""
    return max(2, 1 + len(task.eos)) * how.beams


def _seated(beams: Sequence[_Beam], names: Iterator[int]) -> list[_Beam]:
    """Each beam on a branch of its own: the first of a branch has it, the others begin as it is now."""
    taken: set[int] = set()
    seated = []
    for beam in beams:
        if beam.branch in taken:
            beam = replace(beam, branch=next(names), parent=beam.branch)
        taken.add(beam.branch)
        seated.append(beam)
    return seated


def _ended(task: Task, beam: _Beam) -> str:
    """Why a sequence ends with its last token; empty, if it does not."""
    if beam.tokens[-1].id in task.eos:
        return "eos"
    return "length" if len(beam.tokens) == task.max_new_tokens else ""


def _common(sequences: Sequence[Sequence[Token]]) -> int:
    """How many of the first tokens all have."""
    columns = zip(*([token.id for token in sequence] for sequence in sequences), strict=False)
    return sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, columns))
