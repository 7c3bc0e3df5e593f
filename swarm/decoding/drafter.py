"""What may follow, from runs of tokens that came before and from a model that drafts."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any

from protocol.candidates import Want
from swarm.decoding.asks import DRAFT, Ask, Task
from swarm.decoding.chooser import expect_candidates
from swarm.decoding.pace import Pace
from swarm.decoding.runs import Runs


@dataclass(frozen=True, slots=True)
class Draft:
    """Tokens that may follow; `pace` is of where they come from."""

    tokens: tuple[int, ...]
    pace: Pace


class Drafter:
    """Of one sequence. Runs draft where they promise more than the model does, or there is none."""

    def __init__(self, task: Task, most: int, run: int) -> None:
        """most: of the tokens of a draft; run: of those of a run, 0 for no runs."""
        self._task = task
        self._runs = Runs(run) if run else None
        self._of_runs, self._of_model = Pace(most), Pace(most)
        self._has = 0  # so many of the tokens, those guessed included, the model that drafts has run

    def draft(
        self, tokens: Sequence[int], room: int, guessed: Sequence[int] = ()
    ) -> Generator[Any, Any, Draft | None]:
        """What may follow `tokens` and those `guessed`, which are under way; at most `room`, which is above 0."""
        has_model = self._task.draft_vocab is not None
        if self._runs is not None and not (has_model and self._of_model.promise > self._of_runs.promise):
            found = self._runs.after(tokens, guessed, min(room, self._of_runs.most))
            if found and (length := _length(self._of_runs, guessed)):
                return Draft(found[:length], self._of_runs)
        if has_model and (length := min(room, _length(self._of_model, guessed))):
            return (yield from self._of_model_next([*tokens, *guessed], length))
        return None

    def took(self, draft: Draft | None, seconds: float) -> None:
        """A step that was under way alone took so long: all learn from one without a draft."""
        if draft is not None:
            draft.pace.took(len(draft.tokens), seconds)
            return
        for pace in (self._of_runs, self._of_model):
            pace.took(0, seconds)

    def sent(self, length: int) -> None:
        """So many tokens stand or are guessed: what was drafted beyond is not used."""
        self._has = min(self._has, length)

    def turn_back(self, length: int) -> None:
        """Only the first so many are what they were."""
        self._has = min(self._has, length)

    def _of_model_next(self, tokens: Sequence[int], length: int) -> Generator[Ask, Any, Draft | None]:
        """The model's best, one after the other."""
        clock, began = self._task.clock, self._task.clock()
        drafted: list[int] = []
        at = min(self._has, len(tokens) - 1)
        rows = tuple(tokens[at:])
        if max(rows) >= (self._task.draft_vocab or 0):  # of a vocabulary that was made longer
            return None
        fresh = len(rows) > 2 * length  # the prompt: not what a draft costs
        for _ in range(length):
            found = expect_candidates((yield Ask(rows, at, Want(top=1), DRAFT)))
            at += len(rows)
            token = int(found.ids[0, 0])
            if token >= self._task.vocab_size:
                break
            drafted.append(token)
            rows = (token,)
            if token in self._task.eos:
                break
        self._has = at
        if not drafted:
            return None
        if not fresh:
            self._of_model.drafting_took(len(drafted), clock() - began)
        return Draft(tuple(drafted), self._of_model)


def _length(pace: Pace, guessed: Sequence[int]) -> int:
    return pace.beyond(len(guessed)) if guessed else pace.length()
