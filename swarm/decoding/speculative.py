"""Several tokens for each step: what is likely to follow is drafted, and checked by the model all at once.

The tokens are those that come without: at each place the model's own row and the number drawn for that place decide,
and a drafted token holds if it is the one. So an answer depends on seed and logits alone, whatever was drafted.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Final

from protocol import limits
from protocol.candidates import Want
from protocol.errors import ConfigError
from swarm.decoding.asks import AMATEUR, Ask, Decoding, Ending, Task
from swarm.decoding.chooser import Chooser, Place, expect_candidates
from swarm.decoding.pace import Pace
from swarm.decoding.runs import Runs, common_prefix
from swarm.decoding.sampling import Sampling

DRAFTS: Final = 32
RUN: Final = 8


@dataclass(frozen=True, slots=True)
class Speculative:
    """Drafts what comes next, from runs that came before and from an amateur if there is one; greedy or drawn.

    drafts  the most tokens that are drafted for one step; how many it is follows from what holds, and what steps cost
    run     the most tokens of a run that is looked up; 0: only the amateur drafts
    """

    name: ClassVar[str] = "speculative"
    needs_amateur: ClassVar[bool | None] = None

    drafts: int = 16
    run: int = 4

    def __post_init__(self) -> None:
        if not 1 <= self.drafts <= DRAFTS:
            raise ConfigError(f"drafts {self.drafts}: it is from 1 to {DRAFTS}")
        if not (self.run == 0 or 2 <= self.run <= RUN):
            raise ConfigError(f"run {self.run}: it is 0 (off), or from 2 to {RUN}")

    @property
    def sessions(self) -> int:
        """See `Strategy`."""
        return 1

    def check(self, sampling: Sampling) -> None:
        """See `Strategy`: it goes with all."""

    def decode(self, task: Task) -> Decoding:
        """See `Strategy`."""
        return _speculate(task, self)


@dataclass(frozen=True, slots=True)
class _Draft:
    """Tokens that may follow; `pace` is of where they come from."""

    tokens: tuple[int, ...]
    pace: Pace


class _Drafter:
    """Where drafts come from."""

    def __init__(self, task: Task, how: Speculative) -> None:
        self._task = task
        self._runs = Runs(how.run) if how.run else None
        self._of_runs, self._of_amateur = Pace(how.drafts), Pace(how.drafts)
        self._amateur_has = 0  # so many tokens of the answer's sequence, from the first

    def took(self, draft: _Draft | None, seconds: float) -> None:
        """A step took so long: all learn from one without a draft."""
        if draft is not None:
            draft.pace.took(len(draft.tokens), seconds)
            return
        for pace in (self._of_runs, self._of_amateur):
            pace.took(0, seconds)

    def draft(self, tokens: Sequence[int], most: int) -> Generator[Ask, Any, _Draft | None]:
        """What may follow `tokens`, at most so many."""
        if self._runs is not None:
            found = self._runs.after(tokens, min(most, self._of_runs.most))
            if found and (length := self._of_runs.length()):
                return _Draft(found[:length], self._of_runs)
        if self._task.amateur_vocab is not None and (length := min(most, self._of_amateur.length())):
            return (yield from self._of_amateur_next(tokens, length))
        return None

    def _of_amateur_next(self, tokens: Sequence[int], length: int) -> Generator[Ask, Any, _Draft | None]:
        """The amateur's best, one after the other."""
        clock, began = self._task.clock, self._task.clock()
        drafted: list[int] = []
        rows, at = tuple(tokens[self._amateur_has :]), self._amateur_has
        fresh = len(rows) > 2 * length  # the prompt: not what a draft costs
        for _ in range(length):
            found = expect_candidates((yield Ask(rows, at, Want(top=1), AMATEUR)))
            at += len(rows)
            token = int(found.ids[0, 0])
            if token >= self._task.vocab_size:
                break
            drafted.append(token)
            rows = (token,)
        self._amateur_has = len(tokens)
        if not drafted:
            return None
        if not fresh:
            self._of_amateur.drafting_took(len(drafted), clock() - began)
        return _Draft(tuple(drafted), self._of_amateur)

    def held(self, draft: _Draft, kept: int) -> None:
        """The first `kept` tokens of it were right."""
        draft.pace.held(len(draft.tokens), kept)
        if draft.pace is self._of_amateur:  # the last of a draft it has not run
            self._amateur_has += min(kept, len(draft.tokens) - 1)


def _speculate(task: Task, how: Speculative) -> Decoding:
    chooser, drafter = Chooser(task), _Drafter(task, how)
    tokens, done, end = list(task.prompt), task.begin, len(task.prompt) + task.max_new_tokens
    while len(tokens) < end:
        draft = None
        if done == len(tokens) - 1 and len(tokens) > len(task.prompt):
            draft = yield from drafter.draft(tokens, end - len(tokens) - 1)
        places, draft = _places(chooser, tokens, draft)
        drafted = () if draft is None else draft.tokens
        want = _for_all([place.want for place in places], task.vocab_size)
        began = task.clock()
        found = expect_candidates((yield Ask((*tokens[done:], *drafted), done, want)))
        if done == len(tokens) - 1:
            drafter.took(draft, task.clock() - began)
        chosen: list[int] = []
        for at, place in enumerate(places):
            token = chooser.pick(replace(place, want=want), found, at)
            if token is None:
                token = yield from chooser.settle(place, tokens)
            chosen.append(token.id)
            tokens.append(token.id)
            yield token
            if token.id in task.eos:
                return Ending("eos")
            if at < len(drafted) and token.id != drafted[at]:
                break
        if draft is not None:
            drafter.held(draft, common_prefix(chosen, drafted))
        done = len(tokens) - 1
    return Ending("length")


def _places(
    chooser: Chooser, tokens: Sequence[int], draft: _Draft | None
) -> tuple[list[Place], _Draft | None]:
    """Where tokens are to be chosen: after all there are, and after each drafted one, as far as one may follow."""
    places = [chooser.place(tokens)]
    if draft is None:
        return places, None
    for count in range(1, len(draft.tokens) + 1):
        try:
            places.append(chooser.place([*tokens, *draft.tokens[:count]]))
        except ConfigError:  # nothing may follow it, and the model has not said that it comes
            return places, replace(draft, tokens=draft.tokens[: count - 1]) if count > 1 else None
    return places, draft


def _for_all(wants: Sequence[Want], vocab_size: int) -> Want:
    """One want that has what each of them has; of more than one, for every row."""
    if len(wants) == 1:
        return wants[0]
    top, ids = max(want.top for want in wants), sorted({each for want in wants for each in want.ids})
    temperature = wants[0].temperature
    if not min(want.top for want in wants) or top + len(ids) >= vocab_size or len(ids) > limits.ASKED_IDS:
        return Want(every=True, top=0, temperature=temperature)
    return Want(every=True, top=top, ids=tuple(ids), temperature=temperature)
